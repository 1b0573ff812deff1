#include <cmath>
#include <limits>

#include "backends.h"
#include "harness.h"

using namespace fastviz;
using namespace fastviz::test;

namespace {

struct Shape {
  int64_t channels, rows, columns, window, canvas_rows, canvas_columns;
};

/// What a test gives the kernel and what the kernel writes to.
struct Case {
  Shape shape;
  Dtype dtype;
  double epsilon, limit;
  std::vector<double> sample, weights, chances, values;
  std::vector<uint8_t> usable, filled;
  std::vector<int64_t> places;
};

/// Half of the canvas is filled; of the rest each second pixel is to be, in an order that jumps to and fro.
Case random_case(const Shape& s, Dtype dtype, double epsilon, double limit) {
  Case c{s, dtype, epsilon, limit, {}, {}, {}, {}, {}, {}, {}};
  c.sample = rounded(dtype, random_values(s.channels * s.rows * s.columns, 31));
  c.values = rounded(dtype, random_values(s.channels * s.canvas_rows * s.canvas_columns, 32));
  for (double value : random_values(s.window * s.window, 33)) c.weights.push_back(std::fabs(value));
  c.weights = rounded(dtype, c.weights);
  for (double value : random_values((s.rows - s.window + 1) * (s.columns - s.window + 1), 34))
    c.usable.push_back(value > -1.5);
  c.usable[0] = 1;
  for (double value : random_values(s.canvas_rows * s.canvas_columns, 35)) c.filled.push_back(value > 0);
  const int64_t reach = s.window / 2, inner = s.canvas_columns - 2 * reach;
  const int64_t pixels = (s.canvas_rows - 2 * reach) * inner;
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t pixel = i % 2 ? pixels - i : i;
    const int64_t place = (pixel / inner + reach) * s.canvas_columns + pixel % inner + reach;
    if (i % 4 < 2 && !c.filled[static_cast<size_t>(place)]) c.places.push_back(place);
  }
  for (double value : random_values(static_cast<int64_t>(c.places.size()), 36)) c.chances.push_back((value + 2) / 4.01);
  return c;
}

/// One pixel after the other, every window in full.
void fill_plainly(Case& c) {
  const Shape& s = c.shape;
  const int64_t reach = s.window / 2, windows_across = s.columns - s.window + 1;
  for (size_t i = 0; i < c.places.size(); ++i) {
    std::vector<double> sums(c.usable.size(), std::numeric_limits<double>::infinity());
    double total = 0, best = std::numeric_limits<double>::infinity();
    for (size_t window = 0; window < sums.size(); ++window) {
      if (!c.usable[window]) continue;
      const int64_t y = static_cast<int64_t>(window) / windows_across;
      const int64_t x = static_cast<int64_t>(window) % windows_across;
      sums[window] = total = 0;
      for (int64_t pixel = 0; pixel < s.window * s.window; ++pixel) {
        const int64_t row = pixel / s.window, column = pixel % s.window;
        const int64_t there = c.places[i] + (row - reach) * s.canvas_columns + column - reach;
        if (!c.filled[static_cast<size_t>(there)]) continue;
        const double weight = c.weights[static_cast<size_t>(pixel)];
        total += weight;
        for (int64_t k = 0; k < s.channels; ++k) {
          const double difference = c.sample[static_cast<size_t>((k * s.rows + y + row) * s.columns + x + column)] -
                                    c.values[static_cast<size_t>(k * s.canvas_rows * s.canvas_columns + there)];
          sums[window] += weight * difference * difference;
        }
      }
      best = std::min(best, sums[window]);
    }
    std::vector<size_t> good;
    for (size_t window = 0; window < sums.size(); ++window) {
      if (c.usable[window] && sums[window] <= best * (1 + c.epsilon)) good.push_back(window);
    }
    const size_t chosen = good[static_cast<size_t>(c.chances[i] * static_cast<double>(good.size()))];
    if (total > 0 && sums[chosen] / total / static_cast<double>(s.channels) >= c.limit) continue;
    const int64_t y = static_cast<int64_t>(chosen) / windows_across + reach;
    const int64_t x = static_cast<int64_t>(chosen) % windows_across + reach;
    for (int64_t k = 0; k < s.channels; ++k) {
      c.values[static_cast<size_t>(k * s.canvas_rows * s.canvas_columns + c.places[i])] =
          c.sample[static_cast<size_t>((k * s.rows + y) * s.columns + x)];
    }
    c.filled[static_cast<size_t>(c.places[i])] = 1;
  }
}

void check_growth(const Case& c, const Case& expected) {
  const Shape& s = c.shape;
  SameBits same;
  for (const Backend& backend : backends()) {
    if (backend.cuda) continue;
    describe(backend.name, " ", name_of(c.dtype), " ", s.channels, "x", s.rows, "x", s.columns, " window ", s.window,
             " epsilon ", c.epsilon, " limit ", c.limit);
    const Buffer sample(backend, encode(c.dtype, c.sample)), weights(backend, encode(c.dtype, c.weights));
    const Buffer values(backend, encode(c.dtype, c.values)), filled(backend, c.filled), usable(backend, c.usable);
    const Buffer chances(backend, encode(Dtype::float64, c.chances));
    const Indices places(backend, c.places);
    // Wherever a neighbour is said to come from, the choice is the same.
    std::vector<int64_t> origins(c.filled.size(), -1);
    for (size_t i = 0; i < origins.size(); ++i) {
      if (c.filled[i]) origins[i] = static_cast<int64_t>(i * 7 % c.usable.size());
    }
    const Indices sources(backend, origins);
    GrowTexture a{};
    a.dtype = c.dtype;
    a.channels = s.channels;
    a.rows = s.rows;
    a.columns = s.columns;
    a.window = s.window;
    a.canvas_rows = s.canvas_rows;
    a.canvas_columns = s.canvas_columns;
    a.pixels = static_cast<int64_t>(c.places.size());
    a.sample = sample.data();
    a.usable = static_cast<const bool*>(usable.data());
    a.weights = weights.data();
    a.places = places.data();
    a.chances = static_cast<const double*>(chances.data());
    a.epsilon = c.epsilon;
    a.limit = c.limit;
    a.values = values.data();
    a.filled = static_cast<bool*>(filled.data());
    a.sources = const_cast<int64_t*>(sources.data());
    grow_texture_cpu(backend.parallel, a);
    same.check(backend, values.read());
    CHECK(equal(decode(c.dtype, values.read()), expected.values));
    CHECK(filled.read() == expected.filled);
    for (size_t i = 0; i < c.places.size(); ++i) {
      const size_t place = static_cast<size_t>(c.places[i]);
      CHECK((sources.data()[place] >= 0) == (expected.filled[place] != 0));
    }
  }
}

void check_growth(const Case& c) {
  Case expected = c;
  fill_plainly(expected);
  check_growth(c, expected);
}

}  // namespace

TEST(grow_texture_shapes) {
  // Rows of 1, few, 32 and more windows.
  const std::vector<Shape> shapes = {{1, 3, 3, 3, 7, 6},    {3, 8, 9, 3, 9, 9},      {1, 6, 40, 5, 12, 9},
                                     {2, 12, 70, 3, 8, 30}, {3, 20, 37, 11, 21, 24}, {1, 4, 5, 3, 5, 4}};
  for (const Shape& shape : shapes) {
    for (Dtype dtype : {Dtype::float32, Dtype::float64}) {
      for (double epsilon : {0.0, 0.1, 3.0}) {
        check_growth(random_case(shape, dtype, epsilon, 1e9));
        check_growth(random_case(shape, dtype, epsilon, 0.8));
      }
    }
  }
}

TEST(grow_texture_of_equal_windows) {
  // Every window is as good as any other: chance alone decides.
  Case c = random_case({2, 7, 41, 3, 9, 11}, Dtype::float32, 0, 1e9);
  for (double& value : c.sample) value = 0.5;
  for (size_t i = 0; i < c.values.size(); ++i) c.values[i] = 0.5;
  check_growth(c);
}

TEST(grow_texture_fills_nothing_below_no_limit) {
  check_growth(random_case({1, 5, 6, 3, 8, 8}, Dtype::float64, 0.1, 0));
}

TEST(grow_texture_leaves_pixels_whose_windows_have_no_finite_sum) {
  for (double value : {double(NAN), double(INFINITY), 1e30}) {
    for (Dtype dtype : {Dtype::float32, Dtype::float64}) {
      if (value == 1e30 && dtype == Dtype::float64) continue;  // the square of it is finite there
      Case c = random_case({2, 7, 41, 3, 9, 11}, dtype, 0.1, 1e9);
      for (double& pixel : c.values) pixel = value;
      c.values = rounded(dtype, c.values);
      for (uint8_t& pixel : c.filled) pixel = 1;
      for (int64_t place : c.places) c.filled[static_cast<size_t>(place)] = 0;
      Case expected = c;
      // A pixel without any filled neighbour takes any window; each of these has some.
      check_growth(c, expected);
    }
  }
}
