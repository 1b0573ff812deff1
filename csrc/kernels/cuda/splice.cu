#include "device.cuh"
#include "picture.cuh"

namespace fastviz {
namespace {

constexpr int splice_vectors = 4;  // of 16 bytes, that a thread has in flight

template <typename T>
struct SpliceTask {
  const T* clean;
  const T* dirty;
  const int64_t* dirty_origin;
  const int64_t* window_origin;
  const int64_t* image_index;
  T* output;
  T pad_value;
  int64_t images;
  int64_t clean_picture, clean_rows, clean_columns, clean_row;  // values, rows, pixels in a row, values in a row
  int64_t dirty_picture, dirty_rows, dirty_columns, dirty_row;
  int64_t window_picture, window_rows, window_columns;
  int64_t pixel;
  Grid grid;  // of a window
  Position step;  // from a thread's vector to its next one
  FastDivide spans;  // blocks that share a window
  int64_t blocks;
};

/// Where one window takes its values from. Columns are counted in values.
template <typename T>
struct SpliceWindow {
  const T* clean;  // null: every value is `otherwise`
  const T* dirty;
  T otherwise;
  int64_t row, column;  // of the window in the map
  int64_t dirty_row, dirty_column;  // of the dirty crop in the map

  /// Where the value stands in memory; null where it is padding.
  __device__ __forceinline__ const T* source(const SpliceTask<T>& task, const Position& position) const {
    const int64_t y = row + position.row;
    const int64_t x = column + position.column;
    if (!clean || y < 0 || y >= task.clean_rows || x < 0 || x >= task.clean_row) return nullptr;
    const int64_t dirty_y = y - dirty_row;
    const int64_t dirty_x = x - dirty_column;
    if (dirty_y >= 0 && dirty_y < task.dirty_rows && dirty_x >= 0 && dirty_x < task.dirty_row) {
      return dirty + (position.plane * task.dirty_rows + dirty_y) * task.dirty_row + dirty_x;
    }
    return clean + (position.plane * task.clean_rows + y) * task.clean_row + x;
  }
};

/// Origins are clipped to where a window just leaves the map, so that no origin overflows. A window of a map that does
/// not exist is NaN.
template <typename T>
__device__ __forceinline__ SpliceWindow<T> window_of(const SpliceTask<T>& task, int64_t number) {
  const int64_t image = task.image_index ? task.image_index[number] : 0;
  const bool exists = image >= 0 && image < task.images;
  const int64_t* origin = task.window_origin + 2 * number;
  const int64_t* dirty_origin = task.dirty_origin + 2 * number;
  return {exists ? task.clean + image * task.clean_picture : nullptr,
          task.dirty + number * task.dirty_picture,
          exists ? task.pad_value : narrow<T>(NAN),
          clamp(origin[0], -task.window_rows, task.clean_rows),
          clamp(origin[1], -task.window_columns, task.clean_columns) * task.pixel,
          clamp(dirty_origin[0], -task.dirty_rows, task.clean_rows),
          clamp(dirty_origin[1], -task.dirty_columns, task.clean_columns) * task.pixel};
}

/// Writes the windows where a pixel is a multiple of 16 bytes (channels_last), so that no vector lies on a border. One
/// block = 4 x 256 vectors of one window, one thread = 4 vectors; no shared memory.
///   1. Find where each vector comes from and read it: 4 reads in flight.
///   2. Write.
template <typename T>
__global__ void __launch_bounds__(256) splice_vectors_kernel(const SpliceTask<T> task) {
  constexpr int N = width<T>;
  for (int64_t block = blockIdx.x; block < task.blocks; block += gridDim.x) {
    const int64_t number = task.spans.divide(block);
    const int64_t span = task.spans.remainder(block, number);
    const SpliceWindow<T> window = window_of(task, number);
    T* output = task.output + number * task.window_picture;
    const int64_t step = static_cast<int64_t>(blockDim.x) * N;
    const int64_t first = span * splice_vectors * step + static_cast<int64_t>(threadIdx.x) * N;

    Vector<T, N> vectors[splice_vectors];
    Position position = task.grid.position(first);
#pragma unroll
    for (int i = 0; i < splice_vectors; ++i) {
      const int64_t value = first + i * step;
      const T* source = value < task.window_picture ? window.source(task, position) : nullptr;
      task.grid.advance(position, task.step);
      vectors[i] = source ? load<T, N>(source) : splat<T, N>(window.otherwise);
    }
#pragma unroll
    for (int i = 0; i < splice_vectors; ++i) {
      const int64_t value = first + i * step;
      if (value < task.window_picture) store(output + value, vectors[i]);
    }
  }
}

/// The same for any pixel. One block = 256 vectors of one window, aligned in the output; one thread = one of them: it
/// reads value by value and writes 16 bytes.
template <typename T>
__global__ void __launch_bounds__(256) splice_values_kernel(const SpliceTask<T> task) {
  constexpr int N = width<T>;
  for (int64_t block = blockIdx.x; block < task.blocks; block += gridDim.x) {
    const int64_t number = task.spans.divide(block);
    const int64_t span = task.spans.remainder(block, number);
    const SpliceWindow<T> window = window_of(task, number);
    T* output = task.output + number * task.window_picture;
    const int64_t before = misalignment(reinterpret_cast<uintptr_t>(output), sizeof(T));
    const int64_t first = (span * blockDim.x + threadIdx.x) * N - before;
    write_values(output, task.window_picture, first, task.grid, [&](int64_t, const Position& position) {
      const T* source = window.source(task, position);
      return source ? load<T, 1>(source).value[0] : window.otherwise;
    });
  }
}

template <typename T>
void splice(Stream stream, const Splice& a) {
  constexpr int N = width<T>;
  const Layout& layout = a.layout;
  const int64_t pixel = layout.pixel;
  SpliceTask<T> task{};
  task.clean = static_cast<const T*>(a.clean);
  task.dirty = static_cast<const T*>(a.dirty);
  task.dirty_origin = a.dirty_origin;
  task.window_origin = a.window_origin;
  task.image_index = a.image_index;
  task.output = static_cast<T*>(a.output);
  task.pad_value = narrow<T>(static_cast<Sum<T>>(a.pad_value));
  task.images = a.images;
  task.clean_picture = layout.picture();
  task.clean_rows = layout.rows;
  task.clean_columns = layout.columns;
  task.clean_row = layout.row();
  task.dirty_picture = layout.planes * a.dirty_rows * a.dirty_columns * pixel;
  task.dirty_rows = a.dirty_rows;
  task.dirty_columns = a.dirty_columns;
  task.dirty_row = a.dirty_columns * pixel;
  task.window_picture = layout.planes * a.window_rows * a.window_columns * pixel;
  task.window_rows = a.window_rows;
  task.window_columns = a.window_columns;
  task.pixel = pixel;
  task.grid = {FastDivide(a.window_columns * pixel), FastDivide(a.window_rows)};

  const bool vectors = pixel % N == 0 && aligned(a.clean) && aligned(a.dirty) && aligned(a.output);
  const int64_t units =
      vectors ? ceil_div(task.window_picture / N, splice_vectors) : vectors_of(task.window_picture, N);
  const int threads = threads_for(units);
  task.step = task.grid.position(int64_t{threads} * N);
  task.spans = FastDivide(ceil_div(units, threads));
  task.blocks = a.windows * task.spans.divisor();
  if (vectors) {
    launch(splice_vectors_kernel<T>, task.blocks, threads, 0, stream, task);
  } else {
    launch(splice_values_kernel<T>, task.blocks, threads, 0, stream, task);
  }
}

}  // namespace

void splice_cuda(Stream stream, const Splice& arguments) {
  const int64_t picture =
      arguments.layout.planes * arguments.window_rows * arguments.window_columns * arguments.layout.pixel;
  if (arguments.windows == 0 || picture == 0) return;
  with_dtype(arguments.dtype, [&](auto type) { splice<decltype(type)>(stream, arguments); });
}

}  // namespace fastviz
