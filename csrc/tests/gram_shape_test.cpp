// How the CUDA kernels cut a Gram matrix up.

#include "../kernels/cuda/gram_shape.cuh"

#include <set>
#include <utility>

#include "harness.h"

using namespace fastviz;
using test::describe;

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
