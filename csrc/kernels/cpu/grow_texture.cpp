#include <algorithm>
#include <limits>
#include <vector>

#include "window_sums.h"

namespace fastviz {
namespace {

/// Taps between two looks at whether the windows are out of the running.
constexpr size_t taps_between_looks = 8;

/// The sums of windows side by side, from `start` on, over all taps; false, and nothing written, as soon as each of
/// them is above `limit`. `sample` is the first pixel of the first window.
template <typename S, Instructions set>
FASTVIZ_INLINE bool sums_of(const S* sample, int64_t plane, int64_t channels, const Taps<S>& taps, const S* start,
                            S limit, S* output) {
  using V = WindowVectors<S, set>;
  using Unaligned = typename V::Unaligned;
  typename V::Vector sums[V::count];
#pragma GCC unroll 8
  for (int v = 0; v < V::count; ++v) sums[v] = *reinterpret_cast<const Unaligned*>(start + v * V::lanes);
  const S* value = taps.values.data();
  for (size_t tap = 0; tap < taps.offsets.size();) {
    const size_t end = std::min(tap + taps_between_looks, taps.offsets.size());
    for (; tap < end; ++tap) {
      add_tap<V>(sample + taps.offsets[tap], plane, channels, value, taps.weights[tap], sums);
      value += channels;
    }
    typename V::Vector least = sums[0];
#pragma GCC unroll 8
    for (int v = 1; v < V::count; ++v) least = sums[v] < least ? sums[v] : least;
    bool alive = false;
    for (int lane = 0; lane < V::lanes; ++lane) alive |= least[lane] <= limit;
    if (!alive) return false;
  }
#pragma GCC unroll 8
  for (int v = 0; v < V::count; ++v) *reinterpret_cast<Unaligned*>(output + v * V::lanes) = sums[v];
  return true;
}

/// `sums_of` for one instruction set.
template <typename S>
struct Sums {
  int64_t windows;  // that it handles at a time
  bool (*run)(const S* sample, int64_t plane, int64_t channels, const Taps<S>& taps, const S* start, S limit,
              S* output);
};

template <typename S>
Sums<S> sums_here() {
  return with_instructions([](auto chosen) {
    constexpr Instructions set = decltype(chosen)::value;
    return Sums<S>{WindowVectors<S, set>::windows, Target<set>::template run<sums_of<S, set>>};
  });
}

/// The sample and its windows, rows of windows filled up to whole blocks with ones that are never chosen.
template <typename S>
struct Source {
  const GrowTexture& a;
  Sums<S> sums = sums_here<S>();
  int64_t padded = (a.window_columns() + sums.windows - 1) / sums.windows * sums.windows;  // windows in a row
  int64_t columns = padded + a.window - 1;  // pixels in a row
  std::vector<S> pixels = std::vector<S>(static_cast<size_t>(a.channels * a.rows * columns));
  std::vector<S> start = std::vector<S>(static_cast<size_t>(a.window_rows() * padded),
                                        std::numeric_limits<S>::infinity());  // 0 where a window may be chosen
  std::vector<int64_t> order;  // the pixels of a window, the largest weight first

  explicit Source(const GrowTexture& arguments) : a(arguments) {
    const S* sample = static_cast<const S*>(a.sample);
    for (int64_t row = 0; row < a.channels * a.rows; ++row)
      std::copy(sample + row * a.columns, sample + (row + 1) * a.columns, pixels.begin() + row * columns);
    for (int64_t y = 0; y < a.window_rows(); ++y) {
      for (int64_t x = 0; x < a.window_columns(); ++x) {
        if (!a.usable || a.usable[y * a.window_columns() + x]) start[static_cast<size_t>(y * padded + x)] = 0;
      }
    }
    const S* weights = static_cast<const S*>(a.weights);
    for (int64_t pixel = 0; pixel < a.window * a.window; ++pixel) {
      if (weights[pixel] != 0) order.push_back(pixel);
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t p, int64_t q) { return weights[p] > weights[q]; });
  }
};

/// The search for one pixel's window; its memory serves one pixel after the other.
template <typename S>
class Search {
 public:
  explicit Search(const Source<S>& source) : source_(source), sums_(source.start.size()) {}

  /// The number of the window chosen for the pixel at `place`, or -1 if its error is not below the limit.
  int64_t choose(int64_t place, double chance) {
    const GrowTexture& a = source_.a;
    read(place);
    std::fill(sums_.begin(), sums_.end(), std::numeric_limits<S>::infinity());
    best_ = std::numeric_limits<S>::infinity();
    // The windows that go on from where the neighbours came are likely to be good, and the sooner a good one is known
    // the sooner the others are given up.
    for (int64_t i = -1; i <= 1; ++i) {
      for (int64_t j = -1; j <= 1; ++j) {
        const int64_t neighbour = a.sources[place + i * a.canvas_columns + j];
        if (neighbour < 0 || neighbour >= a.window_rows() * a.window_columns()) continue;
        const int64_t y = neighbour / a.window_columns() - i, x = neighbour % a.window_columns() - j;
        if (y >= 0 && y < a.window_rows() && x >= 0 && x < a.window_columns()) visit(y, x / source_.sums.windows);
      }
    }
    for (int64_t y = 0; y < a.window_rows(); ++y) {
      for (int64_t block = 0; block < source_.padded / source_.sums.windows; ++block) visit(y, block);
    }
    const S sum = sum_of_choice(chance);
    const double error = taps_.total == 0 ? 0 : static_cast<double>(sum / taps_.total);
    return error / static_cast<double>(a.channels) < a.limit ? chosen_ : -1;
  }

 private:
  /// Those of the largest weight come first: sums then grow fast, and windows that cannot be chosen are given up early.
  void read(int64_t place) {
    const GrowTexture& a = source_.a;
    const int64_t plane = a.canvas_rows * a.canvas_columns, reach = a.window / 2;
    const S* values = static_cast<const S*>(a.values);
    taps_.clear();
    for (const int64_t pixel : source_.order) {
      const int64_t y = pixel / a.window, x = pixel % a.window;
      const int64_t there = place + (y - reach) * a.canvas_columns + x - reach;
      if (!a.filled[there]) continue;
      taps_.add(y * source_.columns + x, static_cast<const S*>(a.weights)[pixel], a.channels,
                [&](int64_t c) { return values[c * plane + there]; });
    }
  }

  S limit() const { return best_ * static_cast<S>(1 + source_.a.epsilon); }

  void visit(int64_t y, int64_t block) {
    const int64_t x = block * source_.sums.windows, first = y * source_.padded + x;
    S* sums = sums_.data() + first;
    if (source_.sums.run(source_.pixels.data() + y * source_.columns + x, source_.a.rows * source_.columns,
                         source_.a.channels, taps_, source_.start.data() + first, limit(), sums)) {
      for (int64_t window = 0; window < source_.sums.windows; ++window) best_ = std::min(best_, sums[window]);
    }
  }

  /// Takes window number floor(chance * k) of the k that are good enough, in row-major order; returns its sum. None,
  /// and infinity, where no window has a finite sum, as beside a canvas of NaN.
  S sum_of_choice(double chance) {
    const S most = std::min(limit(), std::numeric_limits<S>::max());  // infinite sums are of windows not looked at
    int64_t count = 0;
    for (const S sum : sums_) count += sum <= most;
    if (count == 0) {
      chosen_ = -1;
      return std::numeric_limits<S>::infinity();
    }
    int64_t wanted = std::min(static_cast<int64_t>(chance * static_cast<double>(count)), count - 1);
    size_t place = 0;
    while (sums_[place] > most || wanted-- > 0) ++place;
    const int64_t at = static_cast<int64_t>(place);
    chosen_ = at / source_.padded * source_.a.window_columns() + at % source_.padded;
    return sums_[place];
  }

  const Source<S>& source_;
  Taps<S> taps_;
  std::vector<S> sums_;  // infinite where a window was given up
  S best_ = 0;
  int64_t chosen_ = -1;
};

/// Numbers of the pixels in waves: a pixel's wave comes after those of all earlier pixels that lie in its window.
std::vector<std::vector<int64_t>> waves_of(const GrowTexture& a) {
  std::vector<int32_t> wave(static_cast<size_t>(a.canvas_rows * a.canvas_columns));  // 0 where no pixel waits
  std::vector<std::vector<int64_t>> waves;
  const int64_t reach = a.window / 2;
  for (int64_t i = 0; i < a.pixels; ++i) {
    int32_t latest = 0;
    for (int64_t y = -reach; y <= reach; ++y) {
      const int32_t* row = wave.data() + a.places[i] + y * a.canvas_columns;
      for (int64_t x = -reach; x <= reach; ++x) latest = std::max(latest, row[x]);
    }
    wave[static_cast<size_t>(a.places[i])] = latest + 1;
    waves.resize(std::max(waves.size(), static_cast<size_t>(latest) + 1));
    waves[static_cast<size_t>(latest)].push_back(i);
  }
  return waves;
}

template <typename S>
void grow_texture(const Parallel& parallel, const GrowTexture& a) {
  const Source<S> source(a);
  const int64_t reach = a.window / 2, work = a.window_rows() * a.window_columns() * a.channels * a.window;
  std::vector<int64_t> chosen(static_cast<size_t>(a.pixels));
  for (const std::vector<int64_t>& wave : waves_of(a)) {
    parallel_for(parallel, static_cast<int64_t>(wave.size()), work, [&](int64_t begin, int64_t end) {
      Search<S> search(source);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t pixel = wave[static_cast<size_t>(i)];
        chosen[static_cast<size_t>(pixel)] = search.choose(a.places[pixel], a.chances[pixel]);
      }
    });
    for (const int64_t pixel : wave) {
      const int64_t window = chosen[static_cast<size_t>(pixel)], place = a.places[pixel];
      if (window < 0) continue;
      const int64_t y = window / a.window_columns() + reach, x = window % a.window_columns() + reach;
      for (int64_t c = 0; c < a.channels; ++c) {
        static_cast<S*>(a.values)[c * a.canvas_rows * a.canvas_columns + place] =
            static_cast<const S*>(a.sample)[(c * a.rows + y) * a.columns + x];
      }
      a.filled[place] = true;
      a.sources[place] = window;
    }
  }
}

}  // namespace

void grow_texture_cpu(const Parallel& parallel, const GrowTexture& arguments) {
  if (arguments.dtype == Dtype::float64) return grow_texture<double>(parallel, arguments);
  grow_texture<float>(parallel, arguments);
}

}  // namespace fastviz
