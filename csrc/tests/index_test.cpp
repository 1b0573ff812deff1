// The index arithmetic of the CUDA kernels.

#include "../kernels/cuda/index.cuh"

#include <utility>
#include <vector>

#include "harness.h"

using namespace fastviz;
using test::describe;

TEST(fast_divide_equals_division) {
  constexpr int64_t most = INT64_MAX;
  const std::vector<int64_t> divisors = {
      1,     2,     3,       5,        7,    10,           12,       224,         299,          641,     65535,
      65536, 65537, 1 << 30, most / 2, most, most / 2 + 1, most - 1, 0x100000001, 0x7fffffffff, 6700417, 1000003};
  for (int64_t divisor : divisors) {
    const FastDivide fast(divisor);
    std::vector<int64_t> numbers = {0, 1, 2, most, most - 1};
    for (int64_t k : {int64_t{1}, int64_t{2}, int64_t{1000}, most / divisor / 2, most / divisor}) {
      const int64_t multiple = k > most / divisor ? divisor : k * divisor;
      numbers.insert(numbers.end(), {multiple - 1, multiple, multiple < most ? multiple + 1 : multiple});
    }
    for (int64_t n : numbers) {
      if (n < 0) continue;
      describe(n, " / ", divisor);
      CHECK(fast.divide(n) == n / divisor);
      CHECK(fast.remainder(n, fast.divide(n)) == n % divisor);
    }
  }
  uint64_t random = 1;
  const auto next = [&] { return random = random * 6364136223846793005ull + 1442695040888963407ull; };
  for (int i = 0; i < 100000; ++i) {
    const int64_t divisor = static_cast<int64_t>(next() >> (1 + next() % 62)) | 1;
    const int64_t n = static_cast<int64_t>(next() >> (1 + next() % 62));
    describe(n, " / ", divisor);
    CHECK(FastDivide(divisor).divide(n) == n / divisor);
  }
}

TEST(positions_go_on_in_memory_order) {
  for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {3, 1}, {1, 4}, {5, 7}}) {
    const Grid grid{FastDivide(columns), FastDivide(rows)};
    Position running = grid.position(0);
    for (int64_t value = 0; value < 3 * rows * columns; ++value) {
      describe("value ", value, " of rows of ", columns);
      const Position position = grid.position(value);
      CHECK((position.plane * rows + position.row) * columns + position.column == value);
      CHECK(position.row < rows && position.column < columns);
      CHECK(running.plane == position.plane && running.row == position.row && running.column == position.column);
      grid.advance(running);
      for (int64_t distance : {0, 1, 3, 17, 100}) {
        Position further = position;
        grid.advance(further, grid.position(distance));
        CHECK((further.plane * rows + further.row) * columns + further.column == value + distance);
        CHECK(further.row < rows && further.column < columns);
      }
    }
  }
}

TEST(covers_are_clipped_and_agree_with_their_values) {
  constexpr int64_t rows = 5, columns = 4, pixel = 2;
  const std::vector<std::vector<int64_t>> boxes = {
      {0, 0, 5, 4},     {1, 1, 3, 3}, {-2, -3, 2, 2},
      {3, 2, 9, 9},     {2, 2, 2, 4}, {4, 3, 1, 1},
      {-9, -9, -1, -1}, {7, 7, 9, 9}, {INT64_MIN, INT64_MIN, INT64_MAX, INT64_MAX}};
  for (size_t b = 0; b < boxes.size(); ++b) {
    const std::vector<int64_t>& box = boxes[b];
    const Cover cover = cover_of(box.data(), 2, 1, rows, columns, pixel);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns * pixel; ++column) {
        describe("box ", b, " row ", row, " column ", column);
        const int64_t x = column / pixel;
        CHECK(cover.holds(0, row, column) == (row >= box[0] && row < box[2] && x >= box[1] && x < box[3]));
        for (int64_t count = 1; column + count <= columns * pixel; ++count) {
          int64_t held = 0;
          for (int64_t i = 0; i < count; ++i) held += cover.holds(0, row, column + i);
          CHECK(cover.touches(0, row, column, count) == (held > 0));
          CHECK(cover.holds_all(0, row, column, count) == (held == count));
        }
      }
    }
  }
}

TEST(covers_of_one_and_three_axes) {
  const std::vector<int64_t> line = {1, 3}, volume = {1, -2, 2, 3, 2, 9};
  const Cover columns = cover_of(line.data(), 1, 2, 3, 4, 2), part = cover_of(volume.data(), 3, 4, 3, 4, 2);
  for (int64_t slice = 0; slice < 4; ++slice) {
    for (int64_t row = 0; row < 3; ++row) {
      for (int64_t column = 0; column < 8; ++column) {
        describe("slice ", slice, " row ", row, " column ", column);
        CHECK(columns.holds(slice, row, column) == (slice < 2 && column >= 2 && column < 6));
        CHECK(part.holds(slice, row, column) == (slice >= 1 && slice < 3 && row < 2 && column >= 4));
      }
    }
  }
}

TEST(vectors_cover_a_picture_wherever_it_begins) {
  for (int64_t size = 0; size < 20; ++size) {
    for (int64_t width : {2, 4, 8}) {
      for (int64_t before = 0; before < width; ++before) {
        describe("size ", size, " width ", width, " before ", before);
        CHECK(size == 0 || vectors_of(size, width) * width - before >= size);
      }
    }
  }
  CHECK(misalignment(0x1000, 4) == 0);
  CHECK(misalignment(0x1008, 4) == 2);
  CHECK(misalignment(0x1006, 2) == 3);
}
