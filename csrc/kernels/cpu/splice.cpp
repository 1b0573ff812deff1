#include <algorithm>

#include "common.h"

namespace fastviz {
namespace {

/// One row of one window: padding, clean values, dirty values, clean values, padding.
template <typename T>
void splice_row(T* target, const T* clean, const T* dirty, int64_t left, Range map, Range crop, int64_t width,
                int64_t pixel, T pad) {
  const auto at = [&](int64_t x) { return target + (x - left) * pixel; };
  const int64_t right = left + width;
  const Range inside = Range::cut(map.first, map.last, left, right);
  const Range dirty_part = Range::cut(crop.first, crop.last, inside.first, inside.last);
  std::fill(at(left), at(inside.first), pad);
  copy(clean + inside.first * pixel, clean + dirty_part.first * pixel, at(inside.first));
  if (dirty_part.size() > 0) {
    copy(dirty + (dirty_part.first - crop.first) * pixel, dirty + (dirty_part.last - crop.first) * pixel,
         at(dirty_part.first));
  }
  copy(clean + dirty_part.last * pixel, clean + inside.last * pixel, at(dirty_part.last));
  std::fill(at(inside.last), at(right), pad);
}

template <typename T>
void splice(const Parallel& parallel, const Splice& a) {
  const T* clean = static_cast<const T*>(a.clean);
  const T* dirty = static_cast<const T*>(a.dirty);
  T* output = static_cast<T*>(a.output);
  const T pad = narrow<T>(static_cast<Sum<T>>(a.pad_value));
  const int64_t pixel = a.layout.pixel;
  const int64_t planes = a.layout.planes;
  const int64_t plane = a.window_slices * a.window_rows * a.window_columns * pixel;
  const int64_t crop_row = a.dirty_columns * pixel;

  parallel_for(parallel, a.windows * planes, plane, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t window = unit / planes;
      const int64_t image = a.image_index ? a.image_index[window] : 0;
      const T* map = clean + image * a.layout.picture() + unit % planes * a.layout.plane();
      const T* crop = dirty + unit * a.dirty_slices * a.dirty_rows * crop_row;
      // Clipped to where a window or a crop just leaves the map, so that no origin overflows.
      const auto place = [&](const int64_t* origins, int64_t axis, int64_t extent, int64_t size) {
        return std::clamp(of_axis(origins + a.axes * window, a.axes, axis, 0), -extent, size);
      };
      const int64_t front = place(a.window_origin, 0, a.window_slices, a.layout.slices);
      const int64_t top = place(a.window_origin, 1, a.window_rows, a.layout.rows);
      const int64_t left = place(a.window_origin, 2, a.window_columns, a.layout.columns);
      const int64_t crop_front = place(a.dirty_origin, 0, a.dirty_slices, a.layout.slices);
      const int64_t crop_top = place(a.dirty_origin, 1, a.dirty_rows, a.layout.rows);
      const int64_t crop_left = place(a.dirty_origin, 2, a.dirty_columns, a.layout.columns);
      T* target = output + unit * plane;
      for (int64_t k = 0; k < a.window_slices; ++k) {
        const int64_t z = front + k;
        const bool outside = z < 0 || z >= a.layout.slices;
        const bool through = z >= crop_front && z < crop_front + a.dirty_slices;
        for (int64_t i = 0; i < a.window_rows; ++i, target += a.window_columns * pixel) {
          const int64_t y = top + i;
          if (outside || y < 0 || y >= a.layout.rows) {
            std::fill(target, target + a.window_columns * pixel, pad);
            continue;
          }
          const bool crossed = through && y >= crop_top && y < crop_top + a.dirty_rows;
          const int64_t crop_line = (z - crop_front) * a.dirty_rows + y - crop_top;
          const Range columns{crop_left, crossed ? crop_left + a.dirty_columns : crop_left};
          splice_row(target, map + (z * a.layout.rows + y) * a.layout.row(),
                     crossed ? crop + crop_line * crop_row : crop, left, {0, a.layout.columns}, columns,
                     a.window_columns, pixel, pad);
        }
      }
    }
  });
}

}  // namespace

void splice_cpu(const Parallel& parallel, const Splice& arguments) {
  with_dtype(arguments.dtype, [&](auto type) { splice<decltype(type)>(parallel, arguments); });
}

}  // namespace fastviz
