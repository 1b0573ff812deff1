#include <array>
#include <type_traits>

#include "common.h"

namespace fastviz {
namespace {

/// Eight flags, a byte each, from the bits of one byte.
constexpr std::array<uint64_t, 256> flags_table() {
  std::array<uint64_t, 256> table{};
  for (uint64_t byte = 0; byte < 256; ++byte) {
    for (int bit = 0; bit < 8; ++bit) table[byte] |= (byte >> bit & 1) << (8 * bit);
  }
  return table;
}
constexpr std::array<uint64_t, 256> flags_of_byte = flags_table();

/// Values handled at a time: enough for the compiler to use whole vectors at every width.
constexpr int64_t block = 64;

FASTVIZ_INLINE uint8_t pack(uint64_t word) {
  // Each flag is 0 or 1 in the lowest bit of its byte; the product gathers the eight of them in the highest byte.
  return static_cast<uint8_t>(word * 0x0102040810204080ull >> 56);
}

/// Flags of up to `block` values, a byte each, in words of eight.
union Flags {
  uint64_t words[block / 8];
  uint8_t bytes[block];
};

/// A value of 16 bits as it stands in memory. Compared as an integer: compilers do not turn conversions into vectors.
template <uint16_t infinity>
struct Bits {
  uint16_t bits;
};

template <typename T>
using Element = std::conditional_t<std::is_same_v<T, float16>, Bits<0x7c00>,
                                   std::conditional_t<std::is_same_v<T, bfloat16>, Bits<0x7f80>, T>>;

/// Whether the value is not 0 or below: NaN passes.
template <typename T>
FASTVIZ_INLINE bool passes(T value) {
  return !(value <= 0);
}

template <uint16_t infinity>
FASTVIZ_INLINE bool passes(Bits<infinity> value) {
  return (static_cast<int16_t>(value.bits) > 0) | (value.bits > (infinity | 0x8000));
}

/// Whether the value is at or above `upper`, which is above 0; NaN is not.
template <typename T>
FASTVIZ_INLINE bool is_beyond(T value, T upper) {
  return value >= upper;
}

template <uint16_t infinity>
FASTVIZ_INLINE bool is_beyond(Bits<infinity> value, Bits<infinity> upper) {
  return (static_cast<int16_t>(value.bits) >= static_cast<int16_t>(upper.bits)) & (value.bits <= infinity);
}

template <typename T>
FASTVIZ_INLINE void keep(bool kept, const T& value, T& output) {
  output = kept ? value : T{};
}

template <uint16_t infinity>
FASTVIZ_INLINE void keep(bool kept, const Bits<infinity>& value, Bits<infinity>& output) {
  output.bits = static_cast<uint16_t>(kept ? value.bits : 0);
}

/// What is done to values on the way forward, known when it is compiled.
template <typename T, bool bounded, bool open_below>
struct Forward {
  T upper;

  FASTVIZ_INLINE void values(const T* input, T* output, uint8_t* flags, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      const T value = input[i];
      bool kept = passes(value);
      if constexpr (bounded) {
        const bool beyond = is_beyond(value, upper);
        keep(kept, beyond ? upper : value, output[i]);
        flags[i] = (kept | open_below) & !beyond;
      } else {
        keep(kept, value, output[i]);
        flags[i] = kept;
      }
    }
  }
};

template <typename T, typename How>
FASTVIZ_INLINE void forward(const How how, const T* input, T* output, uint8_t* mask, int64_t count) {
  Flags flags = {};
  int64_t i = 0;
  for (; i + block <= count; i += block) {
    how.values(input + i, output + i, flags.bytes, block);
    if (!mask) continue;
    for (int64_t j = 0; j < block / 8; ++j) mask[i / 8 + j] = pack(flags.words[j]);
  }
  if (i == count) return;
  flags = {};
  how.values(input + i, output + i, flags.bytes, count - i);
  if (!mask) return;
  for (int64_t j = 0; 8 * j < count - i; ++j) mask[i / 8 + j] = pack(flags.words[j]);
}

template <typename T, bool masked, bool positive_only>
FASTVIZ_INLINE void backward_values(const T* grad, const uint8_t* flags, T* output, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    bool kept = true;
    if constexpr (masked) kept = kept & (flags[i] != 0);
    if constexpr (positive_only) kept = kept & passes(grad[i]);
    keep(kept, grad[i], output[i]);
  }
}

template <typename T, bool masked, bool positive_only>
FASTVIZ_INLINE void backward(const T* grad, const uint8_t* mask, T* output, int64_t count) {
  alignas(64) uint8_t flags[block] = {};
  for (int64_t i = 0; i < count; i += block) {
    const int64_t values = count - i < block ? count - i : block;
    if constexpr (masked) {
      for (int64_t j = 0; 8 * j < values; ++j) std::memcpy(flags + 8 * j, &flags_of_byte[mask[i / 8 + j]], 8);
    }
    if (values == block) {
      backward_values<T, masked, positive_only>(grad + i, flags, output + i, block);
    } else {
      backward_values<T, masked, positive_only>(grad + i, flags, output + i, values);
    }
  }
}

/// Calls function(first value, number of values) over parts that begin at whole blocks, so that no two threads share a
/// byte of the mask.
template <typename Function>
void over_blocks(const Parallel& parallel, int64_t count, const Function& function) {
  parallel_for(parallel, (count + block - 1) / block, block, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * block;
    const int64_t last = end * block < count ? end * block : count;
    function(first, last - first);
  });
}

/// `value` rounded to the type of the elements.
template <typename T>
Element<T> element_of(double value) {
  const T rounded = narrow<T>(static_cast<Sum<T>>(value));
  Element<T> element;
  static_assert(sizeof(element) == sizeof(rounded), "an element is a value as it stands in memory");
  std::memcpy(&element, &rounded, sizeof(element));
  return element;
}

template <typename T, typename How>
void guided_relu(const Parallel& parallel, const GuidedRelu& a, const How& how) {
  const T* input = static_cast<const T*>(a.input);
  T* output = static_cast<T*>(a.output);
  over_blocks(parallel, a.count, [&](int64_t first, int64_t count) {
    versioned<forward<T, How>>(how, input + first, output + first, a.mask ? a.mask + first / 8 : nullptr, count);
  });
}

template <typename T, bool masked, bool positive_only>
void guided_relu_backward(const Parallel& parallel, const GuidedReluBackward& a) {
  const T* grad = static_cast<const T*>(a.grad);
  T* output = static_cast<T*>(a.output);
  over_blocks(parallel, a.count, [&](int64_t first, int64_t count) {
    versioned<backward<T, masked, positive_only>>(grad + first, masked ? a.mask + first / 8 : nullptr, output + first,
                                                  count);
  });
}

}  // namespace

void guided_relu_cpu(const Parallel& parallel, const GuidedRelu& arguments) {
  with_dtype(arguments.dtype, [&](auto type) {
    using T = Element<decltype(type)>;
    if (!arguments.bounded) return guided_relu<T>(parallel, arguments, Forward<T, false, false>{});
    const T upper = element_of<decltype(type)>(arguments.upper);
    if (arguments.rule == ReluRule::deconvnet)
      return guided_relu<T>(parallel, arguments, Forward<T, true, true>{upper});
    guided_relu<T>(parallel, arguments, Forward<T, true, false>{upper});
  });
}

void guided_relu_backward_cpu(const Parallel& parallel, const GuidedReluBackward& arguments) {
  with_dtype(arguments.dtype, [&](auto type) {
    using T = Element<decltype(type)>;
    if (arguments.rule == ReluRule::plain) return guided_relu_backward<T, true, false>(parallel, arguments);
    if (arguments.mask) return guided_relu_backward<T, true, true>(parallel, arguments);
    guided_relu_backward<T, false, true>(parallel, arguments);
  });
}

}  // namespace fastviz
