// Windows written to memory, by vectors or by values: what occlude and splice share.

#pragma once

#include "common.cuh"

namespace fastviz {

/// Vectors of 16 bytes that a thread has in flight.
constexpr int vectors_a_thread = 4;

/// How the values of equally large windows are dealt out. A task that derives from it has `window(number)`, and what
/// that returns says where values come from: `read(task, value, position, vector)` reads a vector (any, or none, where
/// `value` is past the end), `complete(task, value, position, vector)` adds what it still lacks, and `value_at(task,
/// value, position)` gives one value.
template <typename T>
struct WindowTask {
  using Value = T;
  T* output;
  int64_t size;  // values in a window
  Grid grid;  // of a window
  Position step;  // from a thread's vector to its next one
  FastDivide spans;  // blocks that share a window
  int64_t blocks;
};

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

/// Calls `write(window, output, span)` for each span of a window that is this block's: where its values come from, the
/// window in memory, and the number of the span.
template <typename Task, typename Write>
__device__ __forceinline__ void for_each_span(const Task& task, const Write& write) {
  for (int64_t block = blockIdx.x; block < task.blocks; block += gridDim.x) {
    const int64_t number = task.spans.divide(block);
    const int64_t span = task.spans.remainder(block, number);
    write(task.window(number), task.output + number * task.size, span);
  }
}

/// Writes windows whose rows (or pixels, as the task wants) are a multiple of 16 bytes. One block = 4 x 256 vectors of
/// one window, one thread = 4 vectors of 16 bytes; no shared memory.
///   1. Find where each vector comes from and read it: 4 reads in flight.
///   2. Complete and write them.
template <typename Task>
__global__ void __launch_bounds__(256) window_vectors_kernel(const Task task) {
  using T = typename Task::Value;
  constexpr int N = width<T>;
  for_each_span(task, [&](const auto& window, T* output, int64_t span) {
    const int64_t step = static_cast<int64_t>(blockDim.x) * N;
    const int64_t first = span * vectors_a_thread * step + static_cast<int64_t>(threadIdx.x) * N;

    Vector<T, N> vectors[vectors_a_thread];
    Position positions[vectors_a_thread];
    Position position = task.grid.position(first);
#pragma unroll
    for (int i = 0; i < vectors_a_thread; ++i) {
      positions[i] = position;
      task.grid.advance(position, task.step);
      window.read(task, first + i * step, positions[i], vectors[i]);
    }
#pragma unroll
    for (int i = 0; i < vectors_a_thread; ++i) {
      const int64_t value = first + i * step;
      if (value >= task.size) continue;
      window.complete(task, value, positions[i], vectors[i]);
      store(output + value, vectors[i]);
    }
  });
}

/// The same for windows of any rows. One block = 256 vectors of one window, aligned in the output; one thread = one of
/// them: it reads value by value and writes 16 bytes.
template <typename Task>
__global__ void __launch_bounds__(256) window_values_kernel(const Task task) {
  using T = typename Task::Value;
  constexpr int N = width<T>;
  for_each_span(task, [&](const auto& window, T* output, int64_t span) {
    const int64_t before = misalignment(reinterpret_cast<uintptr_t>(output), sizeof(T));
    const int64_t first = (span * blockDim.x + threadIdx.x) * N - before;
    write_values(output, task.size, first, task.grid,
                 [&](int64_t value, const Position& position) { return window.value_at(task, value, position); });
  });
}

/// Deals the windows out, by vectors where the caller says that they fit, and launches.
template <typename Task>
void launch_windows(Stream stream, Task& task, int64_t windows, bool vectors) {
  constexpr int N = width<typename Task::Value>;
  const int64_t units = vectors ? ceil_div(task.size / N, vectors_a_thread) : vectors_of(task.size, N);
  const int threads = threads_for(units);
  task.step = task.grid.position(int64_t{threads} * N);
  task.spans = FastDivide(ceil_div(units, threads));
  task.blocks = windows * task.spans.divisor();
  if (vectors) {
    launch(window_vectors_kernel<Task>, task.blocks, threads, 0, stream, task);
  } else {
    launch(window_values_kernel<Task>, task.blocks, threads, 0, stream, task);
  }
}

}  // namespace fastviz
