#include <algorithm>

#include "common.h"

namespace fastviz {
namespace {

/// Channels that are transformed at a time: a register of AVX-512, two of AVX2, four of the baseline.
constexpr int64_t block = 16;
typedef float Vector __attribute__((vector_size(block * sizeof(float))));

/// `count` of 16 values; the rest is zero. (By reference: a vector that is returned has another ABI on every target.)
FASTVIZ_INLINE void load(Vector& result, const float* values, int64_t count) {
  if (count == block) {
    std::memcpy(&result, values, sizeof(result));
  } else {
    result = Vector{};
    std::memcpy(&result, values, static_cast<size_t>(count) * sizeof(float));
  }
}

FASTVIZ_INLINE void store(float* values, const Vector& vector, int64_t count) {
  if (count == block) {
    std::memcpy(values, &vector, sizeof(vector));
  } else {
    std::memcpy(values, &vector, static_cast<size_t>(count) * sizeof(float));
  }
}

/// The transposed B of F(4, 3) times six values, which stand `step` apart, in place.
FASTVIZ_INLINE void transform_input(Vector* d, int64_t step) {
  const Vector d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Vector even = d4 - 4 * d2, odd = d3 - 4 * d1, outer = d4 - d2, inner = 2 * (d3 - d1);
  d[0] = 4 * d0 - 5 * d2 + d4;
  d[step] = even + odd;
  d[2 * step] = even - odd;
  d[3 * step] = outer + inner;
  d[4 * step] = outer - inner;
  d[5 * step] = 4 * d1 - 5 * d3 + d5;
}

/// The transposed A of F(4, 3) times six values, which stand `step` apart: four, in place.
FASTVIZ_INLINE void transform_output(Vector* m, int64_t step) {
  const Vector m0 = m[0], m5 = m[5 * step];
  const Vector near = m[step] + m[2 * step], across = m[step] - m[2 * step];
  const Vector far = m[3 * step] + m[4 * step], apart = m[3 * step] - m[4 * step];
  m[0] = m0 + near + far;
  m[step] = across + 2 * apart;
  m[2 * step] = near + 4 * far;
  m[3 * step] = across + 8 * apart + m5;
}

/// Where a tile begins.
struct Tile {
  int64_t image, row, column;

  Tile(int64_t number, int64_t rows, int64_t columns)
      : image(number / (rows * columns)), row(4 * (number / columns % rows)), column(4 * (number % columns)) {}
};

FASTVIZ_INLINE void transform_tiles(const WinogradTiles& a, int64_t begin, int64_t end) {
  const int64_t C = a.channels, stride = (a.end - a.begin) * C;
  Vector values[36];
  for (int64_t number = begin; number < end; ++number) {
    const Tile tile(number, a.tile_rows, a.tile_columns);
    const float* image = a.input + tile.image * a.rows * a.columns * C;
    float* output = a.output + (number - a.begin) * C;
    for (int64_t c = 0; c < C; c += block) {
      const int64_t count = std::min(block, C - c);
      for (int64_t i = 0; i < 6; ++i) {
        const int64_t y = tile.row - a.top + i;
        for (int64_t j = 0; j < 6; ++j) {
          const int64_t x = tile.column - a.left + j;
          const bool inside = y >= 0 && y < a.rows && x >= 0 && x < a.columns;
          if (inside) {
            load(values[6 * i + j], image + (y * a.columns + x) * C + c, count);
          } else {
            values[6 * i + j] = Vector{};
          }
        }
      }
      for (int64_t j = 0; j < 6; ++j) transform_input(values + j, 6);
      for (int64_t i = 0; i < 6; ++i) transform_input(values + 6 * i, 1);
      for (int64_t k = 0; k < 36; ++k) store(output + k * stride + c, values[k], count);
    }
  }
}

FASTVIZ_INLINE void transform_maps(const WinogradMaps& a, int64_t begin, int64_t end) {
  const int64_t K = a.channels, stride = (a.end - a.begin) * K;
  Vector values[36];
  for (int64_t number = begin; number < end; ++number) {
    const Tile tile(number, a.tile_rows, a.tile_columns);
    const float* product = a.product + (number - a.begin) * K;
    const int64_t rows = std::min<int64_t>(4, a.rows - tile.row),
                  columns = std::min<int64_t>(4, a.columns - tile.column);
    for (int64_t k = 0; k < K; k += block) {
      const int64_t count = std::min(block, K - k);
      for (int64_t i = 0; i < 36; ++i) load(values[i], product + i * stride + k, count);
      for (int64_t j = 0; j < 6; ++j) transform_output(values + j, 6);
      for (int64_t i = 0; i < 4; ++i) transform_output(values + 6 * i, 1);
      Vector bias = {}, other;
      if (a.bias) load(bias, a.bias + k, count);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          const int64_t at = ((tile.image * a.rows + tile.row + i) * a.columns + tile.column + j) * K + k;
          Vector value = values[6 * i + j] + bias;
          if (a.other) {
            load(other, a.other + at, count);
            value += other;
          }
          // NaN stays, as in torch's rectifier.
          if (a.rectify) value = value < 0 ? Vector{} : value;
          store(a.output + at, value, count);
        }
      }
    }
  }
}

}  // namespace

void winograd_tiles_cpu(const Parallel& parallel, const WinogradTiles& a) {
  parallel_for(parallel, a.end - a.begin, 36 * a.channels,
               [&](int64_t begin, int64_t end) { versioned<transform_tiles>(a, a.begin + begin, a.begin + end); });
}

void winograd_maps_cpu(const Parallel& parallel, const WinogradMaps& a) {
  parallel_for(parallel, a.end - a.begin, 36 * a.channels,
               [&](int64_t begin, int64_t end) { versioned<transform_maps>(a, a.begin + begin, a.begin + end); });
}

}  // namespace fastviz
