// Pictures written by values: the path for rows that are no multiple of 16 bytes.

#pragma once

#include "device.cuh"

namespace fastviz {

/// One thread's part: writes the `width` values from `first` on, as far as they lie in the picture of `size` values.
/// `first` may be negative and is such that the vector is aligned: all but the ends is one 16-byte store.
/// value_at(value, position) gives a value; its reads are independent of each other.
template <typename T, typename ValueAt>
__device__ __forceinline__ void write_values(T* picture, int64_t size, int64_t first, const Grid& grid,
                                             const ValueAt& value_at) {
  constexpr int N = width<T>;
  if (first >= size) return;
  Vector<T, N> vector;
  Position position = grid.position(larger(first, 0));
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int64_t value = first + i;
    if (value < 0 || value >= size) continue;
    vector.value[i] = value_at(value, position);
    grid.advance(position);
  }
  if (first >= 0 && first + N <= size) {
    store(picture + first, vector);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (first + i >= 0 && first + i < size) picture[first + i] = vector.value[i];
    }
  }
}

}  // namespace fastviz
