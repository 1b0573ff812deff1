// The index arithmetic of the CUDA kernels: plain functions of numbers, which csrc/tests/index_test.cpp checks on the
// CPU. No CUDA header is included here.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTVIZ_BOTH __host__ __device__ __forceinline__
#else
#define FASTVIZ_BOTH inline
#endif

namespace fastviz {

FASTVIZ_BOTH int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
FASTVIZ_BOTH int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTVIZ_BOTH int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTVIZ_BOTH int64_t clamp(int64_t value, int64_t low, int64_t high) { return smaller(larger(value, low), high); }

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

  FASTVIZ_BOTH int64_t divide(int64_t n) const {
    if (divisor_ == 1) return n;
    return static_cast<int64_t>(high_product(static_cast<uint64_t>(n), multiplier_) >> (shift_ - 1));
  }
  FASTVIZ_BOTH int64_t remainder(int64_t n, int64_t quotient) const { return n - quotient * divisor_; }
  FASTVIZ_BOTH int64_t divisor() const { return divisor_; }

 private:
  static FASTVIZ_BOTH uint64_t high_product(uint64_t a, uint64_t b) {
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

/// A value's place in a picture: which plane, which row of it, which value of the row.
struct Position {
  int64_t plane;
  int64_t row;
  int64_t column;
};

/// Shape of a picture, for finding positions.
struct Grid {
  FastDivide row_values;  // values in a row
  FastDivide rows;  // rows in a plane

  FASTVIZ_BOTH Position position(int64_t value) const {
    const int64_t line = row_values.divide(value);
    const int64_t plane = rows.divide(line);
    return {plane, rows.remainder(line, plane), row_values.remainder(value, line)};
  }

  /// The next value in memory.
  FASTVIZ_BOTH void advance(Position& position) const {
    if (++position.column < row_values.divisor()) return;
    position.column = 0;
    if (++position.row < rows.divisor()) return;
    position.row = 0;
    ++position.plane;
  }

  /// The value `distance` values further on, with distance.row and distance.column as `position` gives them.
  FASTVIZ_BOTH void advance(Position& position, const Position& distance) const {
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

/// Rows and values of a row that a box covers in the picture; empty boxes cover none.
struct Cover {
  int64_t top, left, bottom, right;

  FASTVIZ_BOTH bool holds(int64_t row, int64_t column) const {
    return row >= top && row < bottom && column >= left && column < right;
  }
  /// Whether it holds any, or all, of `count` values from `column` on.
  FASTVIZ_BOTH bool touches(int64_t row, int64_t column, int64_t count) const {
    return row >= top && row < bottom && column < right && column + count > left && left < right;
  }
  FASTVIZ_BOTH bool holds_all(int64_t row, int64_t column, int64_t count) const {
    return row >= top && row < bottom && column >= left && column + count <= right;
  }
};

/// A box (top, left, bottom, right) in pixels, clipped to a picture of rows x columns pixels of `pixel` values.
/// Clipping comes before the multiplication, so that no box overflows.
FASTVIZ_BOTH Cover cover_of(const int64_t* box, int64_t rows, int64_t columns, int64_t pixel) {
  return {clamp(box[0], 0, rows), clamp(box[1], 0, columns) * pixel, clamp(box[2], 0, rows),
          clamp(box[3], 0, columns) * pixel};
}

/// Values by which an address lies past a multiple of 16 bytes. A picture that begins there is written in vectors of
/// 16 bytes whose first one begins `misalignment` values before the picture.
FASTVIZ_BOTH int64_t misalignment(uintptr_t address, int64_t value_bytes) {
  return static_cast<int64_t>(address % 16) / value_bytes;
}

/// Most vectors of `width` values that touch a picture of `size` values, wherever it begins.
FASTVIZ_BOTH int64_t vectors_of(int64_t size, int64_t width) {
  return size == 0 ? 0 : ceil_div(size + width - 1, width);
}

// ---------------------------------------------------------------------------------------------------------------------
// Gram matrices. The upper triangle is cut into square tiles, a tile into pieces of 64 x 32 products, one a warp; a
// warp keeps its piece as 8 slices of 8 rows x 32 columns, 8 values a lane and slice.

namespace gram_shape {

constexpr int piece_rows = 64;
constexpr int piece_columns = 32;
constexpr int slices = 8;
constexpr int slice_rows = 8;
constexpr int slice_values = slice_rows * piece_columns;
constexpr int piece_values = piece_rows * piece_columns;
/// Bytes of a channel that one step of the loop over places reads, and of the row in shared memory that holds them: 16
/// more, so that 8 lanes that read 16 bytes from 8 rows meet 8 different groups of 4 banks.
constexpr int step_bytes = 64;
constexpr int row_bytes = 80;

/// Channels of a tile: 64 keeps few warps idle where there are few channels.
FASTVIZ_BOTH int tile_size(int64_t channels) { return channels <= 64 ? 64 : 128; }

FASTVIZ_BOTH int64_t tiles(int64_t channels) {
  const int64_t side = ceil_div(channels, tile_size(channels));
  return side * (side + 1) / 2;
}

struct Tile {
  int64_t row;
  int64_t column;
};

/// Tile `index` of the upper triangle, counted down the columns: (0, 0), (0, 1), (1, 1), (0, 2), ...
FASTVIZ_BOTH Tile tile_of(int64_t index) {
  int64_t column = 0;  // the largest with column (column + 1) / 2 <= index, bit by bit
  for (int64_t step = int64_t{1} << 30; step > 0; step /= 2) {
    const int64_t next = column + step;
    if (next * (next + 1) / 2 <= index) column = next;
  }
  return {index - column * (column + 1) / 2, column};
}

/// Whether a piece whose first product is (row, column) has a product on or above the diagonal and in the matrix.
FASTVIZ_BOTH bool piece_wanted(int64_t row, int64_t column, int64_t channels) {
  return row < channels && column < channels && row < column + piece_columns;
}

/// Parts that the places are cut into, so that a matrix of few tiles keeps a large card busy; each part is a whole
/// number of steps. A function of the shape only: sums have the same order on every card.
struct Parts {
  int64_t count;
  int64_t places;  // in a part; fewer in the last one
};

FASTVIZ_BOTH Parts parts(int64_t images, int64_t channels, int64_t places, int64_t value_bytes) {
  const int64_t blocks = tile_size(channels) == 128 ? 264 : 1056;  // what an H100 runs at the same time
  const int64_t step = step_bytes / value_bytes;
  const int64_t shortest = 4 * step;  // shorter parts would wait for memory more than they compute
  const int64_t wanted = larger(1, blocks / larger(1, images * tiles(channels)));
  const int64_t most = larger(1, ceil_div(places, shortest));
  const int64_t length = larger(step, ceil_div(ceil_div(places, smaller(wanted, most)), step) * step);
  return {larger(1, ceil_div(places, length)), length};
}

/// A slice in the workspace: lane and value of each of its 256 sums, such that a lane writes four at a time.
FASTVIZ_BOTH int slot_of(int lane, int value) { return (value >> 2) * 128 + lane * 4 + (value & 3); }
FASTVIZ_BOTH int slot_lane(int slot) { return slot >> 2 & 31; }
FASTVIZ_BOTH int slot_value(int slot) { return (slot >> 7) * 4 + (slot & 3); }

/// Where a lane's value stands in its slice.
struct Place {
  int row;
  int column;
};

/// float32 and float64: lanes stand in 8 rows x 4 columns. The bits of the lane are dealt out so that lanes i and i ^ 1
/// have the same row, i and i ^ 2 the same column: shared memory then serves 16-byte reads in two passes, not four.
FASTVIZ_BOTH int lane_row(int lane) { return (lane >> 1 & 1) | (lane >> 2 & 6); }
FASTVIZ_BOTH int lane_column(int lane) { return (lane & 1) | (lane >> 1 & 2); }
FASTVIZ_BOTH Place plain_place(int lane, int value) { return {lane_row(lane), lane_column(lane) + 4 * value}; }

/// float16 and bfloat16: as the instruction mma.m16n8k16 leaves its sums, half a block of 16 rows a slice.
FASTVIZ_BOTH Place tensor_place(int lane, int value) {
  return {lane >> 2, (value >> 1) * 8 + (lane & 3) * 2 + (value & 1)};
}

}  // namespace gram_shape
}  // namespace fastviz
