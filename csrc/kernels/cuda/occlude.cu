#include "common.cuh"
#include "windows.cuh"

namespace fastviz {
namespace {

template <typename T>
struct OccludeTask;

/// What a window shows: its picture and fill (null: the value), and where the fill covers the picture.
template <typename T>
struct OccludeWindow {
  static constexpr int N = width<T>;
  const T* picture;
  const T* fill;
  T fill_value;
  Cover cover;

  /// The vector from the fill, if it is wholly covered, or from the picture.
  __device__ __forceinline__ void read(const OccludeTask<T>& task, int64_t value, const Position& position,
                                       Vector<T, N>& vector) const {
    if (value >= task.size) return;
    const T* source = cover.holds_all(task.slice(position), position.row, position.column, N) ? fill : picture;
    vector = source ? load<T, N>(source + value) : splat<T, N>(fill_value);
  }

  /// On the border of the box a vector takes the covered values from the fill.
  __device__ __forceinline__ void complete(const OccludeTask<T>& task, int64_t value, const Position& position,
                                           Vector<T, N>& vector) const {
    const int64_t slice = task.slice(position), row = position.row, column = position.column;
    if (!cover.touches(slice, row, column, N) || cover.holds_all(slice, row, column, N)) return;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (!cover.holds(slice, row, column + j)) continue;
      vector.value[j] = fill ? load<T, 1>(fill + value + j).value[0] : fill_value;
    }
  }

  __device__ __forceinline__ T value_at(const OccludeTask<T>& task, int64_t value, const Position& position) const {
    const T* source = cover.holds(task.slice(position), position.row, position.column) ? fill : picture;
    return source ? load<T, 1>(source + value).value[0] : fill_value;
  }
};

template <typename T>
struct OccludeTask : WindowTask<T> {
  const T* input;
  const int64_t* boxes;
  const int64_t* image_index;
  const T* fill;
  T fill_value;
  int64_t images;
  int64_t fill_stride;  // values from one fill picture to the next
  int64_t columns, pixel;
  FastDivide slices;
  int64_t axes;

  __device__ __forceinline__ int64_t slice(const Position& position) const {
    return slices.remainder(position.plane, slices.divide(position.plane));
  }

  /// A window of a picture that does not exist is covered with NaN.
  __device__ __forceinline__ OccludeWindow<T> window(int64_t number) const {
    const int64_t image = image_index ? image_index[number] : 0;
    const int64_t rows = this->grid.rows.divisor();
    if (image < 0 || image >= images) {
      return {nullptr, nullptr, narrow<T>(NAN), {0, 0, 0, slices.divisor(), rows, this->grid.row_values.divisor()}};
    }
    return {input + image * this->size, fill ? fill + image * fill_stride : nullptr, fill_value,
            cover_of(boxes + 2 * axes * number, axes, slices.divisor(), rows, columns, pixel)};
  }
};

template <typename T>
void occlude(Stream stream, const Occlude& a) {
  const Layout& layout = a.layout;
  OccludeTask<T> task{};
  task.input = static_cast<const T*>(a.input);
  task.boxes = a.boxes;
  task.image_index = a.image_index;
  task.fill = static_cast<const T*>(a.fill);
  task.output = static_cast<T*>(a.output);
  task.fill_value = narrow<T>(static_cast<Sum<T>>(a.fill_value));
  task.images = a.images;
  task.fill_stride = a.fill_images == 1 ? 0 : layout.picture();
  task.size = layout.picture();
  task.columns = layout.columns;
  task.pixel = layout.pixel;
  task.slices = FastDivide(layout.slices);
  task.axes = a.axes;
  task.grid = {FastDivide(layout.row()), FastDivide(layout.rows)};
  const bool vectors = layout.row() % width<T> == 0 && aligned(a.input) && aligned(a.fill) && aligned(a.output);
  launch_windows(stream, task, a.windows, vectors);
}

template <typename T>
struct OccludeBackwardTask {
  const T* grad;
  const int64_t* boxes;
  const int64_t* order;
  const int64_t* offsets;
  T* output;
  bool inside;
  int64_t picture;
  int64_t columns, pixel;
  FastDivide slices;
  int64_t axes;
  Grid grid;
  FastDivide spans;
  int64_t blocks;
};

/// Windows whose boxes a block holds in shared memory, and gradients that a thread has in flight.
constexpr int windows_held = 64;
constexpr int windows_in_flight = 4;

/// Writes the sums of the gradients over a picture's windows, in the order of `order`. One block = 256 vectors of N
/// values of one picture, one thread = one vector (N = 1: rows that are no multiple of 16 bytes). Shared memory: number
/// and cover of 64 windows.
///   1. The first 64 threads read windows and boxes.
///   2. Each thread goes over them, four gradients in flight; gradients that the box removes are not read.
template <typename T, int N>
__global__ void __launch_bounds__(256) occlude_backward_kernel(const OccludeBackwardTask<T> task) {
  __shared__ int64_t numbers[windows_held];
  __shared__ Cover covers[windows_held];
  const int64_t rows = task.grid.rows.divisor();
  for (int64_t block = blockIdx.x; block < task.blocks; block += gridDim.x) {
    const int64_t image = task.spans.divide(block);
    const int64_t span = task.spans.remainder(block, image);
    const int64_t value = (span * blockDim.x + threadIdx.x) * N;
    const Position position = task.grid.position(smaller(value, task.picture - 1));
    const int64_t slice = task.slices.remainder(position.plane, task.slices.divide(position.plane));
    const int64_t last = task.offsets[image + 1];
    Sum<T> sums[N] = {};

    for (int64_t first = task.offsets[image]; first < last; first += windows_held) {
      const int count = static_cast<int>(smaller(windows_held, last - first));
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
        numbers[i] = task.order[first + i];
        covers[i] = cover_of(task.boxes + 2 * task.axes * numbers[i], task.axes, task.slices.divisor(), rows,
                             task.columns, task.pixel);
      }
      __syncthreads();
      // A condition, not `continue`: every thread has to meet the others at the barriers.
      for (int i = 0; value < task.picture && i < count; i += windows_in_flight) {
        Vector<T, N> grads[windows_in_flight];
#pragma unroll
        for (int j = 0; j < windows_in_flight; ++j) {
          grads[j] = splat<T, N>(narrow<T>(0));
          if (i + j >= count) continue;
          const Cover& cover = covers[i + j];
          const bool needed = task.inside ? cover.touches(slice, position.row, position.column, N)
                                          : !cover.holds_all(slice, position.row, position.column, N);
          if (needed) grads[j] = load<T, N>(task.grad + numbers[i + j] * task.picture + value);
        }
#pragma unroll
        for (int j = 0; j < windows_in_flight; ++j) {
          if (i + j >= count) continue;
#pragma unroll
          for (int k = 0; k < N; ++k) {
            if (covers[i + j].holds(slice, position.row, position.column + k) == task.inside) {
              sums[k] += widen(grads[j].value[k]);
            }
          }
        }
      }
    }

    if (value < task.picture) {
      Vector<T, N> result;
#pragma unroll
      for (int k = 0; k < N; ++k) result.value[k] = narrow<T>(sums[k]);
      store(task.output + image * task.picture + value, result);
    }
  }
}

template <typename T>
void occlude_backward(Stream stream, const OccludeBackward& a) {
  const Layout& layout = a.layout;
  OccludeBackwardTask<T> task{};
  task.grad = static_cast<const T*>(a.grad);
  task.boxes = a.boxes;
  task.order = a.order;
  task.offsets = a.offsets;
  task.output = static_cast<T*>(a.output);
  task.inside = a.inside;
  task.picture = layout.picture();
  task.columns = layout.columns;
  task.pixel = layout.pixel;
  task.slices = FastDivide(layout.slices);
  task.axes = a.axes;
  task.grid = {FastDivide(layout.row()), FastDivide(layout.rows)};

  const bool vectors = layout.row() % width<T> == 0 && aligned(a.grad) && aligned(a.output);
  const int64_t units = vectors ? task.picture / width<T> : task.picture;
  const int threads = threads_for(units);
  task.spans = FastDivide(ceil_div(units, threads));
  task.blocks = a.images * task.spans.divisor();
  if (vectors) {
    launch(occlude_backward_kernel<T, width<T>>, task.blocks, threads, 0, stream, task);
  } else {
    launch(occlude_backward_kernel<T, 1>, task.blocks, threads, 0, stream, task);
  }
}

}  // namespace

void occlude_cuda(Stream stream, const Occlude& arguments) {
  if (arguments.windows == 0 || arguments.layout.picture() == 0) return;
  with_dtype(arguments.dtype, [&](auto type) { occlude<decltype(type)>(stream, arguments); });
}

void occlude_backward_cuda(Stream stream, const OccludeBackward& arguments) {
  if (arguments.images == 0 || arguments.layout.picture() == 0) return;
  with_dtype(arguments.dtype, [&](auto type) { occlude_backward<decltype(type)>(stream, arguments); });
}

}  // namespace fastviz
