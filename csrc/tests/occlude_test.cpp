#include <cmath>

#include "backends.h"
#include "harness.h"

using namespace fastviz;
using namespace fastviz::test;

namespace {

struct Shape {
  int64_t channels, rows, columns;
  int64_t slices = 1;
  int64_t axes = 2;  // of the boxes
};

const std::vector<Shape> shapes = {{1, 1, 1},       {3, 5, 7},        {2, 4, 8},       {16, 3, 5},
                                   {3, 1, 16},      {1, 37, 33},      {8, 20, 24},     {3, 5, 7, 4, 3},
                                   {8, 3, 4, 5, 3}, {1, 2, 16, 3, 3}, {4, 1, 9, 1, 1}, {2, 1, 40, 1, 1},
                                   {3, 4, 8, 3, 1}, {2, 5, 6, 3, 2}};

std::vector<int64_t> boxes_for(const Shape& s) {
  const std::vector<int64_t> flat = {0,          0,
                                     s.rows,     s.columns,
                                     1,          1,
                                     s.rows - 1, s.columns - 1,
                                     0,          1,
                                     1,          4,
                                     -3,         -2,
                                     2,          2,
                                     s.rows - 1, s.columns - 1,
                                     s.rows + 5, s.columns + 9,
                                     2,          3,
                                     2,          5,
                                     4,          4,
                                     1,          1,
                                     -5,         -5,
                                     -1,         -1,
                                     s.rows,     0,
                                     s.rows + 1, s.columns,
                                     INT64_MIN,  INT64_MIN,
                                     INT64_MAX,  INT64_MAX,
                                     0,          s.columns / 2,
                                     s.rows,     s.columns};
  const std::vector<int64_t> deep = {0,         s.slices, 1, 2,         -1, 1, s.slices - 1,
                                     INT64_MAX, 2,        2, INT64_MIN, 2,  1, s.slices};
  std::vector<int64_t> boxes;
  for (size_t at = 0; at < flat.size(); at += 4) {
    for (size_t side = 0; side < 2; ++side) {
      if (s.axes > 2) boxes.push_back(deep[(at / 2 + side) % deep.size()]);
      if (s.axes > 1) boxes.push_back(flat[at + 2 * side]);
      boxes.push_back(flat[at + 2 * side + 1]);
    }
  }
  return boxes;
}

Layout layout_for(bool channels_last, const Shape& s) {
  Layout layout = layout_of(channels_last, s.channels, s.rows, s.columns);
  layout.slices = s.slices;
  return layout;
}

/// Calls function(value of a picture, inside of the box) for the values of one picture.
template <typename Function>
void over_values(const Layout& layout, const int64_t* box, int64_t axes, const Function& function) {
  const auto holds = [&](int64_t axis, int64_t place) {
    return axis < 3 - axes || (place >= box[axis + axes - 3] && place < box[axis + 2 * axes - 3]);
  };
  int64_t value = 0;
  for (int64_t plane = 0; plane < layout.planes; ++plane) {
    for (int64_t z = 0; z < layout.slices; ++z) {
      for (int64_t y = 0; y < layout.rows; ++y) {
        for (int64_t x = 0; x < layout.columns; ++x) {
          for (int64_t i = 0; i < layout.pixel; ++i) {
            function(value++, holds(0, z) && holds(1, y) && holds(2, x));
          }
        }
      }
    }
  }
}

}  // namespace

TEST(occlude) {
  constexpr int64_t images = 2;
  for (const Shape& shape : shapes) {
    const std::vector<int64_t> boxes = boxes_for(shape);
    const int64_t sides = 2 * shape.axes, windows = static_cast<int64_t>(boxes.size()) / sides;
    for (Dtype dtype : all_dtypes) {
      for (int variant = 0; variant < 12; ++variant) {
        // Both memory orders; no fill picture, one, one per image; addresses that are no multiple of 16 bytes.
        const bool channels_last = variant % 2;
        const int fills = variant / 2 % 3;
        const size_t shift = variant / 6 ? bytes_of(dtype) : 0;
        const bool indexed = fills != 1;
        const Layout layout = layout_for(channels_last, shape);
        const int64_t picture = layout.picture();
        const std::vector<double> input = rounded(dtype, random_values(images * picture, 1));
        const std::vector<double> fill = rounded(dtype, random_values(fills * picture, 2));
        const double fill_value = rounded(dtype, {0.3})[0];
        std::vector<int64_t> index(static_cast<size_t>(windows));
        for (size_t p = 0; p < index.size(); ++p) index[p] = indexed ? static_cast<int64_t>(p * 7 % 2) : 0;

        std::vector<double> expected(static_cast<size_t>(windows * picture));
        for (int64_t p = 0; p < windows; ++p) {
          const int64_t image = index[static_cast<size_t>(p)];
          over_values(layout, &boxes[static_cast<size_t>(sides * p)], shape.axes, [&](int64_t value, bool inside) {
            const int64_t in_fill = fills == 2 ? image * picture + value : value;
            expected[static_cast<size_t>(p * picture + value)] =
                !inside ? input[static_cast<size_t>(image * picture + value)]
                        : (fills == 0 ? fill_value : fill[static_cast<size_t>(in_fill)]);
          });
        }
        for (const Backend& backend : backends()) {
          describe(backend.name, " ", name_of(dtype), " ", shape.channels, "x", shape.slices, "x", shape.rows, "x",
                   shape.columns, " variant ", variant);
          const Buffer input_buffer(backend, encode(dtype, input), shift), fill_buffer(backend, encode(dtype, fill));
          const Indices box_buffer(backend, boxes), index_buffer(backend, index);
          const Buffer output(backend, expected.size() * bytes_of(dtype), shift);
          Occlude a{};
          a.dtype = dtype;
          a.layout = layout;
          a.images = images;
          a.windows = windows;
          a.input = input_buffer.data();
          a.boxes = box_buffer.data();
          a.image_index = indexed ? index_buffer.data() : nullptr;
          a.fill = fills ? fill_buffer.data() : nullptr;
          a.fill_images = fills == 2 ? images : 1;
          a.fill_value = 0.3;
          a.output = output.data();
          a.axes = shape.axes;
          run(backend, occlude_cpu, occlude_cuda, a);
          CHECK(equal(decode(dtype, output.read()), expected));
        }
      }
    }
  }
}

TEST(occlude_index_out_of_range_is_nan_in_cuda) {
  for (const Backend& backend : backends()) {
    if (!backend.cuda) continue;
    for (int64_t columns : {4, 5}) {
      describe(backend.name, " ", columns, " columns");
      const int64_t picture = 2 * columns;
      const Buffer input(backend, encode(Dtype::float32, random_values(picture, 3)));
      const Indices boxes(backend, {0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0}), index(backend, {-1, 1, 0});
      const Buffer output(backend, encode(Dtype::float32, std::vector<double>(static_cast<size_t>(3 * picture), 9)));
      Occlude a{};
      a.dtype = Dtype::float32;
      a.layout = {1, 2, columns, 1};
      a.images = 1;
      a.windows = 3;
      a.input = input.data();
      a.boxes = boxes.data();
      a.image_index = index.data();
      a.output = output.data();
      run(backend, occlude_cpu, occlude_cuda, a);
      std::vector<double> expected(static_cast<size_t>(2 * picture), NAN);
      for (double value : rounded(Dtype::float32, random_values(picture, 3))) expected.push_back(value);
      CHECK(equal(decode(Dtype::float32, output.read()), expected));
    }
  }
}

TEST(occlude_of_nothing) {
  for (const Backend& backend : backends()) {
    for (const Occlude& empty : {Occlude{Dtype::float32, {3, 4, 5, 1}, 1, 0, {}, {}, {}, {}, 1, 0, {}},
                                 Occlude{Dtype::float16, {3, 0, 5, 1}, 1, 2, {}, {}, {}, {}, 1, 0, {}},
                                 Occlude{Dtype::float64, {1, 4, 5, 0}, 1, 2, {}, {}, {}, {}, 1, 0, {}}}) {
      describe(backend.name);
      const Indices boxes(backend, std::vector<int64_t>(8));
      Occlude a = empty;
      a.boxes = boxes.data();
      run(backend, occlude_cpu, occlude_cuda, a);
    }
  }
}

TEST(occlude_backward) {
  constexpr int64_t images = 3;  // the middle one has no window
  for (const Shape& shape : shapes) {
    std::vector<int64_t> boxes = boxes_for(shape);
    // More windows than a block of the CUDA kernel keeps in shared memory.
    const std::vector<int64_t> more = {1, 1, 2, 3, 3, 4};  // the last sides of it: a box for any number of axes
    while (static_cast<int64_t>(boxes.size()) < 2 * shape.axes * 150) {
      boxes.insert(boxes.end(), more.end() - 2 * shape.axes, more.end());
    }
    const int64_t sides = 2 * shape.axes, windows = static_cast<int64_t>(boxes.size()) / sides;
    std::vector<int64_t> order, offsets = {0};
    for (int64_t image : {0, 1, 2}) {
      for (int64_t p = 0; p < windows; ++p) {
        if ((p % 3 == 0 ? 2 : 0) == image) order.push_back(p);
      }
      offsets.push_back(static_cast<int64_t>(order.size()));
    }
    for (Dtype dtype : all_dtypes) {
      for (int variant = 0; variant < 8; ++variant) {
        const bool inside = variant % 2;
        const size_t shift = variant / 4 ? bytes_of(dtype) : 0;
        const Layout layout = layout_for(variant / 2 % 2, shape);
        const int64_t picture = layout.picture();
        const std::vector<double> grad = rounded(dtype, random_values(windows * picture, 4));
        std::vector<double> sums(static_cast<size_t>(images * picture));
        for (int64_t image = 0; image < images; ++image) {
          for (int64_t i = offsets[static_cast<size_t>(image)]; i < offsets[static_cast<size_t>(image + 1)]; ++i) {
            const int64_t p = order[static_cast<size_t>(i)];
            over_values(layout, &boxes[static_cast<size_t>(sides * p)], shape.axes, [&](int64_t value, bool in_box) {
              double& sum = sums[static_cast<size_t>(image * picture + value)];
              const double term = grad[static_cast<size_t>(p * picture + value)];
              if (in_box != inside) return;
              // The working type's own sum, in the same order: results agree exactly.
              sum = dtype == Dtype::float64 ? sum + term
                                            : static_cast<double>(static_cast<float>(sum) + static_cast<float>(term));
            });
          }
        }
        SameBits same;
        for (const Backend& backend : backends()) {
          describe(backend.name, " ", name_of(dtype), " ", shape.channels, "x", shape.slices, "x", shape.rows, "x",
                   shape.columns, " variant ", variant);
          const Buffer grad_buffer(backend, encode(dtype, grad), shift);
          const Indices box_buffer(backend, boxes), order_buffer(backend, order), offset_buffer(backend, offsets);
          const Buffer output(backend, sums.size() * bytes_of(dtype), shift);
          OccludeBackward a{};
          a.dtype = dtype;
          a.layout = layout;
          a.images = images;
          a.inside = inside;
          a.grad = grad_buffer.data();
          a.boxes = box_buffer.data();
          a.order = order_buffer.data();
          a.offsets = offset_buffer.data();
          a.output = output.data();
          a.axes = shape.axes;
          run(backend, occlude_backward_cpu, occlude_backward_cuda, a);
          const std::vector<uint8_t> bytes = output.read();
          same.check(backend, bytes);
          CHECK(equal(decode(dtype, bytes), rounded(dtype, sums)));
        }
      }
    }
  }
}

TEST(occlude_backward_without_windows_is_zero) {
  for (const Backend& backend : backends()) {
    for (int variant = 0; variant < 4; ++variant) {
      const Layout layout = layout_of(variant % 2, 8, 3, 5);
      describe(backend.name, " variant ", variant);
      const Indices nothing(backend, {}), offsets(backend, {0, 0, 0});
      const Buffer output(backend, static_cast<size_t>(2 * layout.picture()) * 4);
      OccludeBackward a{};
      a.dtype = Dtype::float32;
      a.layout = layout;
      a.images = 2;
      a.inside = variant / 2;
      a.boxes = a.order = nothing.data();
      a.offsets = offsets.data();
      a.output = output.data();
      run(backend, occlude_backward_cpu, occlude_backward_cuda, a);
      CHECK(equal(decode(Dtype::float32, output.read()),
                  std::vector<double>(static_cast<size_t>(2 * layout.picture()), 0.0)));
    }
  }
}
