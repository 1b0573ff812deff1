#include <cmath>
#include <limits>

#include "backends.h"
#include "harness.h"

using namespace fastviz;
using namespace fastviz::test;

namespace {

struct Shape {
  int64_t channels, rows, columns, window_rows, window_columns, neighbourhoods;

  int64_t output_rows() const { return rows - window_rows + 1; }
  int64_t output_columns() const { return columns - window_columns + 1; }
  int64_t pixels() const { return window_rows * window_columns; }
};

/// What a test gives the operator, as it stands in memory, and how much it may be off.
struct Case {
  Shape shape;
  Dtype dtype;
  std::vector<double> sample, neighbourhoods, weights;
  std::vector<uint8_t> masks;
};

/// A quarter of the pixels unknown, and all of the last neighbourhood's where there are several.
Case random_case(const Shape& s, Dtype dtype) {
  Case c{s, dtype, {}, {}, {}, {}};
  c.sample = rounded(dtype, random_values(s.channels * s.rows * s.columns, 21));
  c.neighbourhoods = rounded(dtype, random_values(s.neighbourhoods * s.channels * s.pixels(), 22));
  for (double value : random_values(s.pixels(), 23)) c.weights.push_back(std::fabs(value));
  c.weights = rounded(dtype, c.weights);
  const std::vector<double> dice = random_values(s.neighbourhoods * s.pixels(), 24);
  for (size_t i = 0; i < dice.size(); ++i) {
    const bool last = s.neighbourhoods > 1 && static_cast<int64_t>(i) / s.pixels() == s.neighbourhoods - 1;
    c.masks.push_back(dice[i] > -1 && !last);
  }
  return c;
}

std::vector<double> expected_of(const Case& c) {
  const Shape& s = c.shape;
  std::vector<double> expected;
  for (int64_t b = 0; b < s.neighbourhoods; ++b) {
    for (int64_t y = 0; y < s.output_rows(); ++y) {
      for (int64_t x = 0; x < s.output_columns(); ++x) {
        double sum = 0, total = 0;
        for (int64_t pixel = 0; pixel < s.pixels(); ++pixel) {
          const double weight = c.weights[static_cast<size_t>(pixel)];
          if (!c.masks[static_cast<size_t>(b * s.pixels() + pixel)] || weight == 0) continue;
          const int64_t row = y + pixel / s.window_columns, column = x + pixel % s.window_columns;
          total += weight;
          for (int64_t k = 0; k < s.channels; ++k) {
            const double difference = c.sample[static_cast<size_t>((k * s.rows + row) * s.columns + column)] -
                                      c.neighbourhoods[static_cast<size_t>((b * s.channels + k) * s.pixels() + pixel)];
            sum += weight * difference * difference;
          }
        }
        expected.push_back(total == 0 ? 0 : sum / total);
      }
    }
  }
  return expected;
}

void check_search(const Case& c, size_t shift = 0) {
  const Shape& s = c.shape;
  const std::vector<double> expected = expected_of(c);
  const Dtype sums = sum_dtype(c.dtype);
  // All terms are positive: rounding is relative to the sum.
  const double error = sums == Dtype::float64 ? 1e-13 : 2e-5;
  SameBits same;
  for (const Backend& backend : backends()) {
    describe(backend.name, " ", name_of(c.dtype), " ", s.channels, "x", s.rows, "x", s.columns, " window ",
             s.window_rows, "x", s.window_columns, " neighbourhoods ", s.neighbourhoods, " shift ", shift);
    const Buffer sample(backend, encode(c.dtype, c.sample), shift * bytes_of(c.dtype));
    const Buffer neighbourhoods(backend, encode(c.dtype, c.neighbourhoods)), masks(backend, c.masks);
    const Buffer weights(backend, encode(c.dtype, c.weights));
    const Buffer output(backend, expected.size() * bytes_of(sums), shift * bytes_of(sums));
    PatchSearch a{};
    a.dtype = c.dtype;
    a.channels = s.channels;
    a.rows = s.rows;
    a.columns = s.columns;
    a.window_rows = s.window_rows;
    a.window_columns = s.window_columns;
    a.neighbourhoods = s.neighbourhoods;
    a.sample = sample.data();
    a.neighbourhood = neighbourhoods.data();
    a.mask = static_cast<const bool*>(masks.data());
    a.weights = weights.data();
    a.output = output.data();
    run(backend, patch_search_cpu, patch_search_cuda, a);
    const std::vector<uint8_t> bytes = output.read();
    same.check(backend, bytes);
    CHECK(close(decode(sums, bytes), expected, 0, error));
  }
}

}  // namespace

TEST(patch_search_shapes) {
  // Rows of 1, few, 8, 32 and more windows; one slab of shared memory and several in every direction.
  const std::vector<Shape> shapes = {{1, 1, 1, 1, 1, 1},   {3, 5, 6, 3, 3, 2},     {3, 9, 9, 9, 9, 2},
                                     {1, 4, 12, 2, 5, 3},  {2, 11, 43, 4, 12, 1},  {3, 20, 80, 11, 11, 3},
                                     {4, 10, 70, 3, 3, 2}, {7, 19, 22, 17, 18, 2}, {1, 40, 37, 33, 35, 2},
                                     {0, 6, 7, 3, 3, 2},   {3, 6, 7, 3, 3, 0},     {1, 3, 135, 2, 1, 2}};
  for (const Shape& shape : shapes) {
    for (Dtype dtype : all_dtypes) check_search(random_case(shape, dtype));
  }
}

TEST(patch_search_unaligned) {
  for (Dtype dtype : all_dtypes) check_search(random_case({3, 12, 46, 3, 3, 2}, dtype), 1);
}

TEST(patch_search_finds_the_window_it_came_from) {
  Case c = random_case({2, 14, 40, 5, 5, 1}, Dtype::float32);
  for (int64_t i = 0; i < 50; ++i) {
    const int64_t channel = i / 25, row = i % 25 / 5, column = i % 5;
    c.neighbourhoods[static_cast<size_t>(i)] =
        c.sample[static_cast<size_t>((channel * 14 + 6 + row) * 40 + 11 + column)];
  }
  const std::vector<double> expected = expected_of(c);
  CHECK(expected[6 * 36 + 11] == 0);
  check_search(c);  // zero has no relative error: the distance is exact
}

TEST(patch_search_does_not_look_at_unknown_pixels) {
  for (Dtype dtype : {Dtype::float32, Dtype::float64}) {
    Case c = random_case({3, 8, 40, 3, 3, 2}, dtype);
    for (size_t pixel = 0; pixel < 9; ++pixel) {
      // Known in the first neighbourhood: all but the first column, which is NaN there and in the sample.
      c.masks[pixel] = pixel % 3 != 0;
      c.masks[9 + pixel] = pixel % 3 != 0;
    }
    for (size_t i = 0; i < c.neighbourhoods.size(); i += 3) c.neighbourhoods[i] = NAN;
    for (size_t i = 0; i < c.sample.size(); i += 40) c.sample[i] = NAN;
    check_search(c);
    // A weight of zero is a pixel that is not known.
    for (size_t i = 0; i < c.masks.size(); ++i) c.masks[i] = 1;
    for (size_t i = 0; i < 9; i += 3) c.weights[i] = 0;
    check_search(c);
  }
}

TEST(patch_search_of_weights_below_zero_or_not_finite_is_nan_in_cuda) {
  for (const Backend& backend : backends()) {
    if (!backend.cuda) continue;
    for (double weight : {-1.0, double(NAN), double(INFINITY), -double(INFINITY)}) {
      for (Dtype dtype : all_dtypes) {
        Case c = random_case({3, 8, 40, 3, 3, 1}, dtype);
        c.weights[4] = weight;
        describe(backend.name, " ", name_of(dtype), " weight ", weight);
        const Buffer sample(backend, encode(dtype, c.sample)), masks(backend, c.masks);
        const Buffer neighbourhoods(backend, encode(dtype, c.neighbourhoods)),
            weights(backend, encode(dtype, c.weights));
        const size_t values = static_cast<size_t>(c.shape.output_rows() * c.shape.output_columns());
        const Buffer output(backend, encode(sum_dtype(dtype), std::vector<double>(values, 9)));
        PatchSearch a{};
        a.dtype = dtype;
        a.channels = 3;
        a.rows = 8;
        a.columns = 40;
        a.window_rows = a.window_columns = 3;
        a.neighbourhoods = 1;
        a.sample = sample.data();
        a.neighbourhood = neighbourhoods.data();
        a.mask = static_cast<const bool*>(masks.data());
        a.weights = weights.data();
        a.output = output.data();
        run(backend, patch_search_cpu, patch_search_cuda, a);
        CHECK(equal(decode(sum_dtype(dtype), output.read()), std::vector<double>(values, NAN)));
      }
    }
  }
}
