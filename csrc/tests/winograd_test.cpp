#include <cmath>

#include "backends.h"
#include "harness.h"

using namespace fastviz;
using namespace fastviz::test;

namespace {

struct Shape {
  int64_t images, channels, rows, columns, out, top, left;

  int64_t output_rows() const { return rows + 2 * top - 2; }
  int64_t output_columns() const { return columns + 2 * left - 2; }
  int64_t tile_rows() const { return (output_rows() + 3) / 4; }
  int64_t tile_columns() const { return (output_columns() + 3) / 4; }
  int64_t tiles() const { return images * tile_rows() * tile_columns(); }
  int64_t outputs() const { return images * output_rows() * output_columns() * out; }
};

/// The taps [3, 3, C, K] transformed, [36, C, K]: G of Lavin, Gray 2016, section 4.3, along both sides.
std::vector<double> transformed(const Shape& s, const std::vector<double>& taps) {
  const double G[6][3] = {{1 / 4.0, 0, 0},
                          {-1 / 6.0, -1 / 6.0, -1 / 6.0},
                          {-1 / 6.0, 1 / 6.0, -1 / 6.0},
                          {1 / 24.0, 1 / 12.0, 1 / 6.0},
                          {1 / 24.0, -1 / 12.0, 1 / 6.0},
                          {0, 0, 1}};
  const size_t pairs = static_cast<size_t>(s.channels * s.out);
  std::vector<double> kernels(36 * pairs);
  for (size_t a = 0; a < 6; ++a) {
    for (size_t b = 0; b < 6; ++b) {
      for (size_t i = 0; i < 9; ++i) {
        const double share = G[a][i / 3] * G[b][i % 3];
        for (size_t p = 0; p < pairs; ++p) kernels[(6 * a + b) * pairs + p] += share * taps[i * pairs + p];
      }
    }
  }
  return kernels;
}

/// [36, tiles, C] times [36, C, K].
std::vector<double> products(const Shape& s, const std::vector<double>& tiles, const std::vector<double>& kernels) {
  const size_t C = static_cast<size_t>(s.channels), K = static_cast<size_t>(s.out), rows = tiles.size() / (36 * C);
  std::vector<double> product(36 * rows * K);
  for (size_t e = 0; e < 36; ++e) {
    for (size_t t = 0; t < rows; ++t) {
      for (size_t c = 0; c < C; ++c) {
        for (size_t k = 0; k < K; ++k)
          product[(e * rows + t) * K + k] += tiles[(e * rows + t) * C + c] * kernels[(e * C + c) * K + k];
      }
    }
  }
  return product;
}

/// The convolution itself, plus bias and other, rectified; pictures are [rows, columns, channels].
std::vector<double> expected_of(const Shape& s, const std::vector<double>& x, const std::vector<double>& taps,
                                const std::vector<double>& bias, const std::vector<double>& other, bool rectify) {
  std::vector<double> expected;
  for (int64_t n = 0; n < s.images; ++n) {
    for (int64_t y = 0; y < s.output_rows(); ++y) {
      for (int64_t column = 0; column < s.output_columns(); ++column) {
        for (int64_t k = 0; k < s.out; ++k) {
          double sum = bias.empty() ? 0 : bias[static_cast<size_t>(k)];
          if (!other.empty()) sum += other[expected.size()];
          for (int64_t i = 0; i < 9; ++i) {
            const int64_t row = y - s.top + i / 3, place = column - s.left + i % 3;
            if (row < 0 || row >= s.rows || place < 0 || place >= s.columns) continue;
            for (int64_t c = 0; c < s.channels; ++c) {
              sum += x[static_cast<size_t>(((n * s.rows + row) * s.columns + place) * s.channels + c)] *
                     taps[static_cast<size_t>((i * s.channels + c) * s.out + k)];
            }
          }
          expected.push_back(rectify && sum < 0 ? 0 : sum);
        }
      }
    }
  }
  return expected;
}

/// In pieces of `step` tiles.
void check_convolution(const Shape& s, int64_t step, bool with_bias, bool with_other, bool rectify) {
  const Dtype kind = Dtype::float32;
  const std::vector<double> x = rounded(kind, random_values(s.images * s.rows * s.columns * s.channels, 41));
  const std::vector<double> taps = rounded(kind, random_values(9 * s.channels * s.out, 42));
  std::vector<double> bias, other;
  if (with_bias) bias = rounded(kind, random_values(s.out, 43));
  if (with_other) other = rounded(kind, random_values(s.outputs(), 44));
  const std::vector<double> expected = expected_of(s, x, taps, bias, other, rectify);
  const std::vector<double> kernels = transformed(s, taps);
  SameBits same;
  for (const Backend& backend : backends()) {
    if (backend.cuda) continue;
    describe(backend.name, " ", s.images, "x", s.channels, "x", s.rows, "x", s.columns, " to ", s.out, " pieces of ",
             step);
    const Buffer input(backend, encode(kind, x)), output(backend, expected.size() * sizeof(float));
    const Buffer shift(backend, encode(kind, bias)), sum(backend, encode(kind, other));
    for (int64_t begin = 0; begin < s.tiles(); begin += step) {
      const int64_t end = begin + step < s.tiles() ? begin + step : s.tiles();
      const size_t tiles = static_cast<size_t>(end - begin);
      const Buffer read(backend, 36 * tiles * static_cast<size_t>(s.channels) * sizeof(float));
      WinogradTiles in{};
      in.channels = s.channels;
      in.rows = s.rows;
      in.columns = s.columns;
      in.top = s.top;
      in.left = s.left;
      in.tile_rows = s.tile_rows();
      in.tile_columns = s.tile_columns();
      in.begin = begin;
      in.end = end;
      in.input = static_cast<const float*>(input.data());
      in.output = static_cast<float*>(read.data());
      winograd_tiles_cpu(backend.parallel, in);
      const Buffer product(backend, encode(kind, products(s, decode(kind, read.read()), kernels)));
      WinogradMaps out{};
      out.channels = s.out;
      out.rows = s.output_rows();
      out.columns = s.output_columns();
      out.tile_rows = s.tile_rows();
      out.tile_columns = s.tile_columns();
      out.begin = begin;
      out.end = end;
      out.rectify = rectify;
      out.product = static_cast<const float*>(product.data());
      out.bias = with_bias ? static_cast<const float*>(shift.data()) : nullptr;
      out.other = with_other ? static_cast<const float*>(sum.data()) : nullptr;
      out.output = static_cast<float*>(output.data());
      winograd_maps_cpu(backend.parallel, out);
    }
    same.check(backend, output.read());
    // The products' sums are exact here; the transforms add and subtract values of up to some tens.
    CHECK(close(decode(kind, output.read()), expected, 2e-4, 0));
  }
}

}  // namespace

TEST(winograd_shapes) {
  // Channels that fill no block, one and several; tiles that stick out; no border, one, and one on two sides only.
  const std::vector<Shape> shapes = {{1, 1, 3, 3, 1, 0, 0},   {2, 3, 6, 6, 17, 1, 1},  {1, 16, 10, 6, 16, 0, 0},
                                     {3, 33, 5, 11, 5, 1, 1}, {2, 18, 8, 3, 40, 0, 1}, {1, 2, 3, 30, 3, 1, 0}};
  for (const Shape& shape : shapes) {
    for (int64_t step : {1, 5, 1000}) {
      check_convolution(shape, step, true, true, true);
      check_convolution(shape, step, false, true, false);
      check_convolution(shape, step, true, false, true);
    }
  }
}
