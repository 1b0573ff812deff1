#include <algorithm>
#include <vector>

#include "common.h"

namespace fastviz {
namespace {

template <typename T>
void occlude(const Parallel& parallel, const Occlude& a) {
  const T* input = static_cast<const T*>(a.input);
  const T* fill = static_cast<const T*>(a.fill);
  T* output = static_cast<T*>(a.output);
  const T fill_value = narrow<T>(static_cast<Sum<T>>(a.fill_value));
  const int64_t plane = a.layout.plane();
  const int64_t row = a.layout.row();

  parallel_for(parallel, a.windows * a.layout.planes, plane, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t window = unit / a.layout.planes;
      const int64_t offset = unit % a.layout.planes * plane;
      const int64_t image = a.image_index ? a.image_index[window] : 0;
      const T* source = input + image * a.layout.picture() + offset;
      const T* filling = fill ? fill + (a.fill_images > 1 ? image : 0) * a.layout.picture() + offset : nullptr;
      T* target = output + unit * plane;
      const Box box(a.boxes + 2 * a.axes * window, a.axes, a.layout);
      const int64_t left = box.columns.first * a.layout.pixel;
      const int64_t right = box.columns.last * a.layout.pixel;
      // From one box row to the next, what lies between is one stretch of memory.
      int64_t done = 0;
      for (int64_t z = box.slices.first; z < box.slices.last; ++z) {
        for (int64_t y = z * a.layout.rows + box.rows.first; y < z * a.layout.rows + box.rows.last; ++y) {
          const int64_t first = y * row + left;
          const int64_t last = y * row + right;
          copy(source + done, source + first, target + done);
          if (filling) {
            copy(filling + first, filling + last, target + first);
          } else {
            std::fill(target + first, target + last, fill_value);
          }
          done = last;
        }
      }
      copy(source + done, source + plane, target + done);
    }
  });
}

template <typename T>
FASTVIZ_INLINE void add(Sum<T>* sum, const T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += widen(values[i]);
}

template <typename T>
void occlude_backward(const Parallel& parallel, const OccludeBackward& a) {
  const T* grad = static_cast<const T*>(a.grad);
  T* output = static_cast<T*>(a.output);
  const int64_t row = a.layout.row();
  const int64_t picture_rows = a.layout.planes * a.layout.slices * a.layout.rows;
  const int64_t rows = a.images * picture_rows;

  parallel_for(parallel, rows, row, [&](int64_t begin, int64_t end) {
    std::vector<Sum<T>> sum(static_cast<size_t>(row));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t y = unit % a.layout.rows;
      const int64_t z = unit / a.layout.rows % a.layout.slices;
      const int64_t image = unit / picture_rows;
      const int64_t offset = unit % picture_rows * row;
      std::fill(sum.begin(), sum.end(), Sum<T>(0));
      for (int64_t k = a.offsets[image]; k < a.offsets[image + 1]; ++k) {
        const int64_t window = a.order[k];
        const T* values = grad + window * a.layout.picture() + offset;
        const Box box(a.boxes + 2 * a.axes * window, a.axes, a.layout);
        const bool crossed = box.slices.holds(z) && box.rows.holds(y);
        const int64_t left = crossed ? box.columns.first * a.layout.pixel : row;
        const int64_t right = crossed ? box.columns.last * a.layout.pixel : row;
        if (a.inside) {
          versioned<add<T>>(sum.data() + left, values + left, right - left);
        } else {
          versioned<add<T>>(sum.data(), values, left);
          versioned<add<T>>(sum.data() + right, values + right, row - right);
        }
      }
      std::transform(sum.begin(), sum.end(), output + unit * row, [](Sum<T> value) { return narrow<T>(value); });
    }
  });
}

}  // namespace

void occlude_cpu(const Parallel& parallel, const Occlude& arguments) {
  with_dtype(arguments.dtype, [&](auto type) { occlude<decltype(type)>(parallel, arguments); });
}

void occlude_backward_cpu(const Parallel& parallel, const OccludeBackward& arguments) {
  with_dtype(arguments.dtype, [&](auto type) { occlude_backward<decltype(type)>(parallel, arguments); });
}

}  // namespace fastviz
