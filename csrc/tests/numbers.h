// float16 and bfloat16 as 16 bits, converted without any help from the code under test.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastviz {
namespace test {

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of_bfloat(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

/// Rounds to nearest even.
inline uint16_t bfloat_of_float(float value) {
  if (std::isnan(value)) return 0x7fc0;
  const uint32_t bits = bits_of_float(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float float_of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const float fraction = static_cast<float>(bits & 1023);
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25));
}

/// Rounds to nearest even (the rounding mode that nearbyint uses by default).
inline uint16_t half_of_float(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7e00;
  if (size >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00);
  int exponent = 0;
  std::frexp(size, &exponent);
  // Below 2^-14 numbers stand 2^-24 apart; above, 2^-11 of the next power of two. A fraction that rounds up to 1024
  // carries into the exponent, as it should.
  const bool subnormal = size < std::ldexp(1.0f, -14);
  const float units = std::nearbyint(std::ldexp(size, subnormal ? 24 : 11 - exponent));
  const int scaled = static_cast<int>(units);
  return static_cast<uint16_t>(sign | (subnormal ? scaled : ((exponent + 14) << 10) + scaled - 1024));
}

}  // namespace test
}  // namespace fastviz
