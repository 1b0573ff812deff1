// Weighted squared differences between a neighbourhood of which some pixels are known and windows of a sample that lie
// side by side: the inner loop of patch_search and grow_texture.

#pragma once

#include <vector>

#include "common.h"

namespace fastviz {

/// The known pixels of a neighbourhood, in the order in which their terms are added.
template <typename S>
struct Taps {
  std::vector<int64_t> offsets;  // from a window's first pixel, in a plane of the sample
  std::vector<S> weights;
  std::vector<S> values;  // [taps, channels]
  S total = 0;

  void clear() {
    offsets.clear();
    weights.clear();
    values.clear();
    total = 0;
  }

  /// `value_of` gives the value of a channel.
  template <typename ValueOf>
  void add(int64_t offset, S weight, int64_t channels, const ValueOf& value_of) {
    offsets.push_back(offset);
    weights.push_back(weight);
    for (int64_t c = 0; c < channels; ++c) values.push_back(value_of(c));
    total += weight;
  }
};

/// Vectors of windows whose sums stay in registers.
template <typename S, Instructions set>
struct WindowVectors {
  static constexpr int count = set == Instructions::avx512 ? 2 : 4;
  static constexpr int lanes = vector_bytes<set> / static_cast<int>(sizeof(S));
  static constexpr int64_t windows = count * lanes;
  typedef S Vector __attribute__((vector_size(vector_bytes<set>)));
  typedef S Unaligned __attribute__((vector_size(vector_bytes<set>), aligned(sizeof(S))));
};

/// Adds the terms of one tap to the sums; `pixel` is what the tap meets in the first window, `value` the first of its
/// `channels` values.
template <typename V, typename S>
FASTVIZ_INLINE void add_tap(const S* pixel, int64_t plane, int64_t channels, const S* value, S weight,
                            typename V::Vector (&sums)[V::count]) {
  typename V::Vector squares[V::count] = {};
  for (int64_t c = 0; c < channels; ++c) {
#pragma GCC unroll 8
    for (int v = 0; v < V::count; ++v) {
      const typename V::Vector difference =
          *reinterpret_cast<const typename V::Unaligned*>(pixel + c * plane + v * V::lanes) - value[c];
      squares[v] += difference * difference;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V::count; ++v) sums[v] += weight * squares[v];
}

}  // namespace fastviz
