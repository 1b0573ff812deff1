#include <algorithm>
#include <vector>

#include "window_sums.h"

namespace fastviz {
namespace {

/// The pixels of one neighbourhood that count, in row-major order. `columns` are those of the sample as it stands in
/// memory.
template <typename T>
void read(Taps<Sum<T>>& taps, const PatchSearch& a, const T* neighbourhood, const bool* mask, int64_t columns) {
  const T* weight_of = static_cast<const T*>(a.weights);
  const int64_t pixels = a.window_rows * a.window_columns;
  taps.clear();
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const Sum<T> weight = mask[pixel] ? widen(weight_of[pixel]) : Sum<T>(0);
    if (weight == 0) continue;
    taps.add(pixel / a.window_columns * columns + pixel % a.window_columns, weight, a.channels,
             [&](int64_t c) { return widen(neighbourhood[c * pixels + pixel]); });
  }
}

/// The distances of windows side by side; `sample` is the first pixel of the first window.
template <typename S, Instructions set>
FASTVIZ_INLINE void distances(const S* sample, int64_t plane, int64_t channels, const Taps<S>& taps, S* output) {
  using V = WindowVectors<S, set>;
  typename V::Vector sums[V::count] = {};
  const S* value = taps.values.data();
  for (size_t tap = 0; tap < taps.offsets.size(); ++tap) {
    add_tap<V>(sample + taps.offsets[tap], plane, channels, value, taps.weights[tap], sums);
    value += channels;
  }
#pragma GCC unroll 8
  for (int v = 0; v < V::count; ++v) {
    *reinterpret_cast<typename V::Unaligned*>(output + v * V::lanes) = sums[v] / taps.total;
  }
}

/// `distances` for one instruction set.
template <typename S>
struct Search {
  int64_t windows;  // that it handles at a time
  void (*run)(const S* sample, int64_t plane, int64_t channels, const Taps<S>& taps, S* output);
};

template <typename S>
Search<S> search_here() {
  return with_instructions([](auto chosen) {
    constexpr Instructions set = decltype(chosen)::value;
    return Search<S>{WindowVectors<S, set>::windows, Target<set>::template run<distances<S, set>>};
  });
}

/// The sample in the type that sums run in, its rows filled up to `columns` with zeros.
template <typename T>
std::vector<Sum<T>> prepared(const PatchSearch& a, int64_t columns) {
  std::vector<Sum<T>> copy(static_cast<size_t>(a.channels * a.rows * columns));
  const T* sample = static_cast<const T*>(a.sample);
  for (int64_t row = 0; row < a.channels * a.rows; ++row) {
    for (int64_t x = 0; x < a.columns; ++x)
      copy[static_cast<size_t>(row * columns + x)] = widen(sample[row * a.columns + x]);
  }
  return copy;
}

template <typename T>
void patch_search(const Parallel& parallel, const PatchSearch& a) {
  using S = Sum<T>;
  const Search<S> search = search_here<S>();
  const int64_t rows = a.output_rows(), windows = a.output_columns(), pixels = a.window_rows * a.window_columns;
  // Rows of fewer windows than are handled at a time are filled up.
  const int64_t step = std::min(windows, search.windows);
  const int64_t columns = a.columns + search.windows - step;
  std::vector<S> copy;
  const S* sample;
  if (std::is_same_v<T, S> && columns == a.columns) {
    sample = static_cast<const S*>(a.sample);
  } else {
    copy = prepared<T>(a, columns);
    sample = copy.data();
  }
  const int64_t work = windows * pixels * std::max<int64_t>(a.channels, 1);
  parallel_for(parallel, a.neighbourhoods * rows, work, [&](int64_t begin, int64_t end) {
    Taps<S> taps;
    std::vector<S> filled(static_cast<size_t>(step < search.windows ? search.windows : 0));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t number = unit / rows, y = unit % rows;
      if (unit == begin || y == 0) {
        read(taps, a, static_cast<const T*>(a.neighbourhood) + number * a.channels * pixels, a.mask + number * pixels,
             columns);
      }
      S* output = static_cast<S*>(a.output) + unit * windows;
      const S* row = sample + y * columns;
      if (taps.total == 0) {
        std::fill(output, output + windows, S(0));
      } else if (step < search.windows) {
        search.run(row, a.rows * columns, a.channels, taps, filled.data());
        std::copy(filled.begin(), filled.begin() + windows, output);
      } else {
        // The last ones end with the row, over windows that are done already.
        for (int64_t x = 0; x < windows; x += step) {
          const int64_t first = std::min(x, windows - step);
          search.run(row + first, a.rows * columns, a.channels, taps, output + first);
        }
      }
    }
  });
}

}  // namespace

void patch_search_cpu(const Parallel& parallel, const PatchSearch& arguments) {
  with_dtype(arguments.dtype, [&](auto type) { patch_search<decltype(type)>(parallel, arguments); });
}

}  // namespace fastviz
