// How the CUDA kernels cut a Gram matrix up: plain functions of numbers, which csrc/tests/gram_shape_test.cpp checks on
// the CPU. The upper triangle is cut into square tiles, a tile into pieces of 64 x 32 products, one per warp; a warp
// keeps its piece as 8 slices of 8 rows x 32 columns, 8 values a lane and slice.

#pragma once

#include "index.cuh"

namespace fastviz {
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
FASTVIZ_HOST_DEVICE int tile_size(int64_t channels) { return channels <= 64 ? 64 : 128; }

FASTVIZ_HOST_DEVICE int64_t tiles(int64_t channels) {
  const int64_t side = ceil_div(channels, tile_size(channels));
  return side * (side + 1) / 2;
}

struct Tile {
  int64_t row;
  int64_t column;
};

/// Tile `index` of the upper triangle, counted down the columns: (0, 0), (0, 1), (1, 1), (0, 2), ...
FASTVIZ_HOST_DEVICE Tile tile_of(int64_t index) {
  int64_t column = 0;  // the largest with column (column + 1) / 2 <= index, bit by bit
  for (int64_t step = int64_t{1} << 30; step > 0; step /= 2) {
    const int64_t next = column + step;
    if (next * (next + 1) / 2 <= index) column = next;
  }
  return {index - column * (column + 1) / 2, column};
}

/// Whether a piece whose first product is (row, column) has a product on or above the diagonal and in the matrix.
FASTVIZ_HOST_DEVICE bool piece_wanted(int64_t row, int64_t column, int64_t channels) {
  return row < channels && column < channels && row < column + piece_columns;
}

/// Parts that the places are cut into, so that a matrix of few tiles keeps a large card busy; each part is a whole
/// number of steps. A function of the shape only: sums have the same order on every card.
struct Parts {
  int64_t count;
  int64_t places;  // in a part; fewer in the last one
};

FASTVIZ_HOST_DEVICE Parts parts(int64_t images, int64_t channels, int64_t places, int64_t value_bytes) {
  const int64_t blocks = tile_size(channels) == 128 ? 264 : 1056;  // what an H100 runs at the same time
  const int64_t step = step_bytes / value_bytes;
  const int64_t shortest = 4 * step;  // shorter parts would wait for memory more than they compute
  const int64_t wanted = larger(1, blocks / larger(1, images * tiles(channels)));
  const int64_t most = larger(1, ceil_div(places, shortest));
  const int64_t length = larger(step, ceil_div(ceil_div(places, smaller(wanted, most)), step) * step);
  return {larger(1, ceil_div(places, length)), length};
}

/// A slice in the workspace: lane and value of each of its 256 sums, such that a lane writes four at a time.
FASTVIZ_HOST_DEVICE int slot_of(int lane, int value) { return (value >> 2) * 128 + lane * 4 + (value & 3); }
FASTVIZ_HOST_DEVICE int slot_lane(int slot) { return slot >> 2 & 31; }
FASTVIZ_HOST_DEVICE int slot_value(int slot) { return (slot >> 7) * 4 + (slot & 3); }

/// Where a lane's value stands in its slice.
struct Place {
  int row;
  int column;
};

/// float32 and float64: lanes stand in 8 rows x 4 columns. The bits of the lane are dealt out so that lanes i and i ^ 1
/// have the same row, i and i ^ 2 the same column: shared memory then serves 16-byte reads in two passes, not four.
FASTVIZ_HOST_DEVICE int lane_row(int lane) { return (lane >> 1 & 1) | (lane >> 2 & 6); }
FASTVIZ_HOST_DEVICE int lane_column(int lane) { return (lane & 1) | (lane >> 1 & 2); }
FASTVIZ_HOST_DEVICE Place plain_place(int lane, int value) { return {lane_row(lane), lane_column(lane) + 4 * value}; }

/// float16 and bfloat16: as the instruction mma.m16n8k16 leaves its sums, half a block of 16 rows per slice.
FASTVIZ_HOST_DEVICE Place tensor_place(int lane, int value) {
  return {lane >> 2, (value >> 1) * 8 + (lane & 3) * 2 + (value & 1)};
}

}  // namespace gram_shape
}  // namespace fastviz
