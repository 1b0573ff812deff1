// The index arithmetic of the CUDA kernels.

#include "../kernels/cuda/index.cuh"

#include <set>
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
    const Cover cover = cover_of(box.data(), rows, columns, pixel);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns * pixel; ++column) {
        describe("box ", b, " row ", row, " column ", column);
        const int64_t x = column / pixel;
        CHECK(cover.holds(row, column) == (row >= box[0] && row < box[2] && x >= box[1] && x < box[3]));
        for (int64_t count = 1; column + count <= columns * pixel; ++count) {
          int64_t held = 0;
          for (int64_t i = 0; i < count; ++i) held += cover.holds(row, column + i);
          CHECK(cover.touches(row, column, count) == (held > 0));
          CHECK(cover.holds_all(row, column, count) == (held == count));
        }
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

TEST(gram_tiles_are_the_upper_triangle) {
  for (int64_t channels : {1, 64, 65, 128, 129, 1000, 5000}) {
    const int64_t tile = gram_shape::tile_size(channels);
    const int64_t side = ceil_div(channels, tile);
    std::set<std::pair<int64_t, int64_t>> seen;
    for (int64_t i = 0; i < gram_shape::tiles(channels); ++i) {
      describe("tile ", i, " of ", channels, " channels");
      const gram_shape::Tile place = gram_shape::tile_of(i);
      CHECK(place.row >= 0 && place.row <= place.column && place.column < side);
      seen.insert({place.row, place.column});
    }
    CHECK(static_cast<int64_t>(seen.size()) == side * (side + 1) / 2);
  }
  const int64_t far = 2000000000;
  const gram_shape::Tile last = gram_shape::tile_of(far * (far + 1) / 2 - 1);
  CHECK(last.row == far - 1 && last.column == far - 1);
}

TEST(gram_pieces_hold_every_wanted_product) {
  for (int64_t channels : {1, 31, 32, 33, 64, 65, 100, 200}) {
    for (int64_t row = 0; row < channels; ++row) {
      for (int64_t column = row; column < channels; ++column) {
        describe("product ", row, ", ", column, " of ", channels);
        CHECK(gram_shape::piece_wanted(row / 64 * 64, column / 32 * 32, channels));
      }
    }
    CHECK(!gram_shape::piece_wanted(64, 32, channels));
    CHECK(gram_shape::piece_wanted(64, 64, channels) == (channels > 64));
    CHECK(!gram_shape::piece_wanted(0, 224, channels));
  }
}

TEST(gram_places_and_slots_are_permutations) {
  std::set<std::pair<int, int>> plain, tensor;
  std::set<int> slots;
  for (int lane = 0; lane < 32; ++lane) {
    for (int value = 0; value < 8; ++value) {
      describe("lane ", lane, " value ", value);
      const gram_shape::Place a = gram_shape::plain_place(lane, value), b = gram_shape::tensor_place(lane, value);
      CHECK(a.row >= 0 && a.row < 8 && a.column >= 0 && a.column < 32);
      CHECK(b.row >= 0 && b.row < 8 && b.column >= 0 && b.column < 32);
      plain.insert({a.row, a.column});
      tensor.insert({b.row, b.column});
      const int slot = gram_shape::slot_of(lane, value);
      CHECK(slot >= 0 && slot < 256);
      CHECK(gram_shape::slot_lane(slot) == lane && gram_shape::slot_value(slot) == value);
      slots.insert(slot);
    }
    // The order of lanes that lets shared memory serve 16-byte reads in two passes.
    CHECK(gram_shape::lane_row(lane) == gram_shape::lane_row(lane ^ 1));
    CHECK(gram_shape::lane_column(lane) == gram_shape::lane_column(lane ^ 2));
  }
  CHECK(plain.size() == 256 && tensor.size() == 256 && slots.size() == 256);
}

TEST(gram_parts_cover_the_places) {
  for (int64_t value_bytes : {2, 4, 8}) {
    for (int64_t images : {1, 2, 1000}) {
      for (int64_t channels : {1, 64, 256, 2048}) {
        for (int64_t places : {int64_t{0}, int64_t{1}, int64_t{15}, int64_t{196}, int64_t{262144}, int64_t{5} << 32}) {
          describe(images, " images ", channels, " channels ", places, " places of ", value_bytes, " bytes");
          const gram_shape::Parts parts = gram_shape::parts(images, channels, places, value_bytes);
          CHECK(parts.count >= 1 && parts.places >= 1);
          CHECK(parts.count * parts.places >= places);
          CHECK((parts.count - 1) * parts.places < larger(places, 1));
          CHECK(parts.places % (gram_shape::step_bytes / value_bytes) == 0);
        }
      }
    }
  }
}
