// The index arithmetic of the CUDA kernels: plain functions of numbers, which csrc/tests/index_test.cpp checks on the
// CPU. No CUDA header is included here.

#pragma once

#include <cstdint>

#include "../kernels.h"

namespace fastviz {

FASTVIZ_HOST_DEVICE int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
FASTVIZ_HOST_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTVIZ_HOST_DEVICE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTVIZ_HOST_DEVICE int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return smaller(larger(value, low), high);
}

/// Most blocks that gridDim.x holds. Kernels whose work may need more loop: block, block + gridDim.x, ...
constexpr int64_t max_blocks = 0x7fffffff;

/// Division by a number known at launch, as a multiplication: exact for 0 <= n < 2^63 and divisors > 0. With
/// l = ceil(log2 divisor) and m = floor(2^(63 + l) / divisor) + 1 < 2^64, n / divisor = floor(n m / 2^(63 + l)).
class FastDivide {
 public:
  FastDivide() = default;
  explicit FastDivide(int64_t divisor) : divisor_(divisor) {
    while (shift_ < 63 && (int64_t{1} << shift_) < divisor) ++shift_;
    // Long division of 2^(63 + l) by the divisor, a bit at a time: there is no 128-bit type in every host compiler.
    uint64_t quotient = 0, remainder = 1;
    for (int bit = 0; bit < 63 + shift_; ++bit) {
      remainder *= 2;
      quotient *= 2;
      if (remainder >= static_cast<uint64_t>(divisor)) {
        remainder -= static_cast<uint64_t>(divisor);
        ++quotient;
      }
    }
    multiplier_ = quotient + 1;
  }

  FASTVIZ_HOST_DEVICE int64_t divide(int64_t n) const {
    if (divisor_ == 1) return n;
    return static_cast<int64_t>(high_product(static_cast<uint64_t>(n), multiplier_) >> (shift_ - 1));
  }
  FASTVIZ_HOST_DEVICE int64_t remainder(int64_t n, int64_t quotient) const { return n - quotient * divisor_; }
  FASTVIZ_HOST_DEVICE int64_t divisor() const { return divisor_; }

 private:
  static FASTVIZ_HOST_DEVICE uint64_t high_product(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
    return __umul64hi(a, b);
#else
    const uint64_t low_low = (a & 0xffffffffu) * (b & 0xffffffffu);
    const uint64_t high_low = (a >> 32) * (b & 0xffffffffu);
    const uint64_t low_high = (a & 0xffffffffu) * (b >> 32);
    const uint64_t middle = (low_low >> 32) + (high_low & 0xffffffffu) + low_high;
    return (a >> 32) * (b >> 32) + (high_low >> 32) + (middle >> 32);
#endif
  }

  int64_t divisor_ = 1;
  uint64_t multiplier_ = 0;
  int shift_ = 0;
};

/// A value's place in a picture: which plane, which row of it, which value of the row. In a volume each slice of a
/// plane counts as a plane: number plane * slices + slice.
struct Position {
  int64_t plane;
  int64_t row;
  int64_t column;
};

/// Shape of a picture, for finding positions.
struct Grid {
  FastDivide row_values;  // values in a row
  FastDivide rows;  // rows in a plane

  FASTVIZ_HOST_DEVICE Position position(int64_t value) const {
    const int64_t line = row_values.divide(value);
    const int64_t plane = rows.divide(line);
    return {plane, rows.remainder(line, plane), row_values.remainder(value, line)};
  }

  /// The next value in memory.
  FASTVIZ_HOST_DEVICE void advance(Position& position) const {
    if (++position.column < row_values.divisor()) return;
    position.column = 0;
    if (++position.row < rows.divisor()) return;
    position.row = 0;
    ++position.plane;
  }

  /// The value `distance` values further on, with distance.row and distance.column as `position` gives them.
  FASTVIZ_HOST_DEVICE void advance(Position& position, const Position& distance) const {
    position.plane += distance.plane;
    position.row += distance.row;
    position.column += distance.column;
    if (position.column >= row_values.divisor()) {
      position.column -= row_values.divisor();
      ++position.row;
    }
    if (position.row >= rows.divisor()) {
      position.row -= rows.divisor();
      ++position.plane;
    }
  }
};

/// Slices, rows and values of a row that a box covers in the picture; empty boxes cover none.
struct Cover {
  int64_t front, top, left, back, bottom, right;

  FASTVIZ_HOST_DEVICE bool crosses(int64_t slice, int64_t row) const {
    return slice >= front && slice < back && row >= top && row < bottom;
  }
  FASTVIZ_HOST_DEVICE bool holds(int64_t slice, int64_t row, int64_t column) const {
    return crosses(slice, row) && column >= left && column < right;
  }
  /// Whether it holds any, or all, of `count` values from `column` on.
  FASTVIZ_HOST_DEVICE bool touches(int64_t slice, int64_t row, int64_t column, int64_t count) const {
    return crosses(slice, row) && column < right && column + count > left && left < right;
  }
  FASTVIZ_HOST_DEVICE bool holds_all(int64_t slice, int64_t row, int64_t column, int64_t count) const {
    return crosses(slice, row) && column >= left && column + count <= right;
  }
};

/// A box of so many axes (see of_axis) in pixels, clipped to a picture of slices x rows x columns pixels of `pixel`
/// values. Clipping comes before the multiplication, so that no box overflows.
FASTVIZ_HOST_DEVICE Cover cover_of(const int64_t* box, int64_t axes, int64_t slices, int64_t rows, int64_t columns,
                                   int64_t pixel) {
  const int64_t* end = box + axes;
  return {
      clamp(of_axis(box, axes, 0, 0), 0, slices),          clamp(of_axis(box, axes, 1, 0), 0, rows),
      clamp(of_axis(box, axes, 2, 0), 0, columns) * pixel, clamp(of_axis(end, axes, 0, slices), 0, slices),
      clamp(of_axis(end, axes, 1, rows), 0, rows),         clamp(of_axis(end, axes, 2, columns), 0, columns) * pixel};
}

/// Values by which an address lies past a multiple of 16 bytes. A picture that begins there is written in vectors of
/// 16 bytes whose first one begins `misalignment` values before the picture.
FASTVIZ_HOST_DEVICE int64_t misalignment(uintptr_t address, int64_t value_bytes) {
  return static_cast<int64_t>(address % 16) / value_bytes;
}

/// Most vectors of `width` values that touch a picture of `size` values, wherever it begins.
FASTVIZ_HOST_DEVICE int64_t vectors_of(int64_t size, int64_t width) {
  return size == 0 ? 0 : ceil_div(size + width - 1, width);
}

}  // namespace fastviz
