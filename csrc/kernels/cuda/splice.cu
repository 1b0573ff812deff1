#include "common.cuh"
#include "windows.cuh"

namespace fastviz {
namespace {

template <typename T>
struct SpliceTask;

/// Where one window takes its values from. Columns are counted in values.
template <typename T>
struct SpliceWindow {
  static constexpr int N = width<T>;
  const T* clean;  // null: every value is `otherwise`
  const T* dirty;
  T otherwise;
  int64_t slice, row, column;  // of the window in the map
  int64_t dirty_slice, dirty_row, dirty_column;  // of the dirty crop in the map

  /// Where the value stands in memory; null where it is padding.
  __device__ __forceinline__ const T* source(const SpliceTask<T>& task, const Position& position) const {
    const int64_t plane = task.window_slices.divide(position.plane);
    const int64_t z = slice + task.window_slices.remainder(position.plane, plane);
    const int64_t y = row + position.row;
    const int64_t x = column + position.column;
    if (!clean || z < 0 || z >= task.clean_slices || y < 0 || y >= task.clean_rows || x < 0 || x >= task.clean_row) {
      return nullptr;
    }
    const int64_t dirty_z = z - dirty_slice;
    const int64_t dirty_y = y - dirty_row;
    const int64_t dirty_x = x - dirty_column;
    if (dirty_z >= 0 && dirty_z < task.dirty_slices && dirty_y >= 0 && dirty_y < task.dirty_rows && dirty_x >= 0 &&
        dirty_x < task.dirty_row) {
      return dirty + ((plane * task.dirty_slices + dirty_z) * task.dirty_rows + dirty_y) * task.dirty_row + dirty_x;
    }
    return clean + ((plane * task.clean_slices + z) * task.clean_rows + y) * task.clean_row + x;
  }

  __device__ __forceinline__ void read(const SpliceTask<T>& task, int64_t value, const Position& position,
                                       Vector<T, N>& vector) const {
    const T* from = value < task.size ? source(task, position) : nullptr;
    vector = from ? load<T, N>(from) : splat<T, N>(otherwise);
  }

  /// No vector lies on a border: they are used where a pixel is a multiple of 16 bytes (channels_last).
  __device__ __forceinline__ void complete(const SpliceTask<T>&, int64_t, const Position&, Vector<T, N>&) const {}

  __device__ __forceinline__ T value_at(const SpliceTask<T>& task, int64_t, const Position& position) const {
    const T* from = source(task, position);
    return from ? load<T, 1>(from).value[0] : otherwise;
  }
};

template <typename T>
struct SpliceTask : WindowTask<T> {
  const T* clean;
  const T* dirty;
  const int64_t* dirty_origin;
  const int64_t* window_origin;
  const int64_t* image_index;
  T pad_value;
  int64_t images;
  // values, slices, rows, pixels in a row, values in a row
  int64_t clean_picture, clean_slices, clean_rows, clean_columns, clean_row;
  int64_t dirty_picture, dirty_slices, dirty_rows, dirty_columns, dirty_row;
  FastDivide window_slices;
  int64_t window_rows, window_columns;
  int64_t pixel;
  int64_t axes;

  /// Origins are clipped to where a window just leaves the map, so that no origin overflows. A window of a map that
  /// does not exist is NaN.
  __device__ __forceinline__ SpliceWindow<T> window(int64_t number) const {
    const int64_t image = image_index ? image_index[number] : 0;
    const bool exists = image >= 0 && image < images;
    const int64_t* origin = window_origin + axes * number;
    const int64_t* crop_origin = dirty_origin + axes * number;
    return {exists ? clean + image * clean_picture : nullptr,
            dirty + number * dirty_picture,
            exists ? pad_value : narrow<T>(NAN),
            clamp(of_axis(origin, axes, 0, 0), -window_slices.divisor(), clean_slices),
            clamp(of_axis(origin, axes, 1, 0), -window_rows, clean_rows),
            clamp(of_axis(origin, axes, 2, 0), -window_columns, clean_columns) * pixel,
            clamp(of_axis(crop_origin, axes, 0, 0), -dirty_slices, clean_slices),
            clamp(of_axis(crop_origin, axes, 1, 0), -dirty_rows, clean_rows),
            clamp(of_axis(crop_origin, axes, 2, 0), -dirty_columns, clean_columns) * pixel};
  }
};

template <typename T>
void splice(Stream stream, const Splice& a) {
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
  task.axes = a.axes;
  task.clean_picture = layout.picture();
  task.clean_slices = layout.slices;
  task.clean_rows = layout.rows;
  task.clean_columns = layout.columns;
  task.clean_row = layout.row();
  task.dirty_picture = layout.planes * a.dirty_slices * a.dirty_rows * a.dirty_columns * pixel;
  task.dirty_slices = a.dirty_slices;
  task.dirty_rows = a.dirty_rows;
  task.dirty_columns = a.dirty_columns;
  task.dirty_row = a.dirty_columns * pixel;
  task.size = layout.planes * a.window_slices * a.window_rows * a.window_columns * pixel;
  task.window_slices = FastDivide(a.window_slices);
  task.window_rows = a.window_rows;
  task.window_columns = a.window_columns;
  task.pixel = pixel;
  task.grid = {FastDivide(a.window_columns * pixel), FastDivide(a.window_rows)};
  const bool vectors = pixel % width<T> == 0 && aligned(a.clean) && aligned(a.dirty) && aligned(a.output);
  launch_windows(stream, task, a.windows, vectors);
}

}  // namespace

void splice_cuda(Stream stream, const Splice& arguments) {
  const int64_t picture = arguments.layout.planes * arguments.window_slices * arguments.window_rows *
                          arguments.window_columns * arguments.layout.pixel;
  if (arguments.windows == 0 || picture == 0) return;
  with_dtype(arguments.dtype, [&](auto type) { splice<decltype(type)>(stream, arguments); });
}

}  // namespace fastviz
