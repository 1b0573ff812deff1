#include <cmath>

#include "backends.h"
#include "harness.h"

using namespace fastviz;
using namespace fastviz::test;

namespace {

struct Shape {
  int64_t channels, rows, columns, dirty_rows, dirty_columns, window_rows, window_columns;
  int64_t slices = 1, dirty_slices = 1, window_slices = 1;
  int64_t axes = 2;  // of the origins
};

const std::vector<Shape> shapes = {{1, 1, 1, 1, 1, 1, 1},
                                   {3, 6, 7, 2, 3, 4, 5},
                                   {16, 5, 4, 3, 2, 4, 4},
                                   {8, 9, 8, 4, 4, 8, 16},
                                   {2, 4, 4, 0, 0, 3, 3},
                                   {4, 3, 3, 5, 5, 9, 9},
                                   {5, 0, 0, 2, 2, 3, 3},
                                   {2, 12, 40, 6, 30, 7, 33},
                                   {3, 5, 4, 2, 3, 4, 6, 4, 2, 3, 3},
                                   {4, 3, 3, 3, 2, 4, 4, 5, 4, 7, 3},
                                   {8, 4, 5, 2, 2, 3, 3, 3, 0, 2, 3},
                                   {2, 1, 20, 1, 7, 1, 9, 1, 1, 1, 1},
                                   {8, 1, 12, 1, 4, 1, 6, 1, 1, 1, 1},
                                   {2, 3, 6, 3, 2, 3, 4, 2, 2, 2, 1}};

/// Adds an origin: the last `axes` of slice, row and column.
void add(std::vector<int64_t>& origins, int64_t axes, int64_t slice, int64_t row, int64_t column) {
  const std::vector<int64_t> all = {slice, row, column};
  origins.insert(origins.end(), all.end() - axes, all.end());
}

}  // namespace

TEST(splice) {
  constexpr int64_t images = 2;
  for (const Shape& s : shapes) {
    const std::vector<int64_t> corners = {
        0,          0,         1,  2,         -1,        -2, s.rows - 1,    s.columns - 1,
        s.rows + 3, 0,         -9, -9,        2,         -1, INT64_MIN,     INT64_MAX,
        1,          INT64_MAX, 1,  INT64_MIN, INT64_MAX, 1,  INT64_MAX - 1, INT64_MIN};
    const std::vector<int64_t> deep = {0, 1, -1, s.slices - 1, s.slices + 2, INT64_MIN, INT64_MAX};
    std::vector<int64_t> dirty_origin, window_origin, index;
    for (size_t d = 0; d < corners.size(); d += 2) {
      for (size_t w = 0; w < corners.size(); w += 2) {
        add(dirty_origin, s.axes, deep[(d + w) % deep.size()], corners[d], corners[d + 1]);
        add(window_origin, s.axes, deep[(d + 3 * w) % deep.size()], corners[w], corners[w + 1]);
        index.push_back(static_cast<int64_t>((d + w) / 2 % 2));
      }
    }
    const int64_t windows = static_cast<int64_t>(index.size());
    for (Dtype dtype : all_dtypes) {
      for (int variant = 0; variant < 8; ++variant) {
        const bool channels_last = variant % 2, indexed = variant / 2 % 2;
        const size_t shift = variant / 4 ? bytes_of(dtype) : 0;
        Layout layout = layout_of(channels_last, s.channels, s.rows, s.columns);
        layout.slices = s.slices;
        const int64_t dirty_picture = s.channels * s.dirty_slices * s.dirty_rows * s.dirty_columns;
        const int64_t window_picture = s.channels * s.window_slices * s.window_rows * s.window_columns;
        const std::vector<double> clean = rounded(dtype, random_values(images * layout.picture(), 5));
        const std::vector<double> dirty = rounded(dtype, random_values(windows * dirty_picture, 6));
        const double pad = rounded(dtype, {-1.7})[0];
        std::vector<double> expected;
        for (int64_t p = 0; p < windows; ++p) {
          const int64_t* corner = &window_origin[static_cast<size_t>(s.axes * p)];
          const int64_t* crop = &dirty_origin[static_cast<size_t>(s.axes * p)];
          const int64_t image = indexed ? index[static_cast<size_t>(p)] : 0;
          // Unsigned: origins at the ends of int64 wrap around and land outside of map and crop.
          const auto number = [&](const int64_t* origin, int64_t axis) {
            return static_cast<uint64_t>(axis < 3 - s.axes ? 0 : origin[axis + s.axes - 3]);
          };
          const auto at = [&](int64_t block, int64_t slices, int64_t rows, int64_t columns, uint64_t z, uint64_t y,
                              uint64_t x, int64_t k) {
            const int64_t slice = block * slices + static_cast<int64_t>(z);
            const int64_t line = slice * rows + static_cast<int64_t>(y);
            return static_cast<size_t>((line * columns + static_cast<int64_t>(x)) * layout.pixel + k);
          };
          const int64_t places = s.window_slices * s.window_rows * s.window_columns;
          for (int64_t value_at = 0; value_at < layout.planes * places * layout.pixel; ++value_at) {
            const int64_t k = value_at % layout.pixel, place = value_at / layout.pixel;
            const int64_t line = place / s.window_columns, plane = place / places;
            const uint64_t x = number(corner, 2) + static_cast<uint64_t>(place % s.window_columns);
            const uint64_t y = number(corner, 1) + static_cast<uint64_t>(line % s.window_rows);
            const uint64_t z = number(corner, 0) + static_cast<uint64_t>(line / s.window_rows % s.window_slices);
            const uint64_t dz = z - number(crop, 0), dy = y - number(crop, 1), dx = x - number(crop, 2);
            double value = pad;
            if (z < static_cast<uint64_t>(s.slices) && y < static_cast<uint64_t>(s.rows) &&
                x < static_cast<uint64_t>(s.columns)) {
              const bool is_dirty = dz < static_cast<uint64_t>(s.dirty_slices) &&
                                    dy < static_cast<uint64_t>(s.dirty_rows) &&
                                    dx < static_cast<uint64_t>(s.dirty_columns);
              value = is_dirty ? dirty[at(p * layout.planes + plane, s.dirty_slices, s.dirty_rows, s.dirty_columns, dz,
                                          dy, dx, k)]
                               : clean[at(image * layout.planes + plane, s.slices, s.rows, s.columns, z, y, x, k)];
            }
            expected.push_back(value);
          }
        }
        for (const Backend& backend : backends()) {
          describe(backend.name, " ", name_of(dtype), " ", s.channels, "x", s.slices, "x", s.rows, "x", s.columns,
                   " variant ", variant);
          const Buffer clean_buffer(backend, encode(dtype, clean), shift), dirty_buffer(backend, encode(dtype, dirty));
          const Indices dirty_corner(backend, dirty_origin), window_corner(backend, window_origin);
          const Indices index_buffer(backend, index);
          const Buffer output(backend, static_cast<size_t>(windows * window_picture) * bytes_of(dtype), shift);
          Splice a{};
          a.dtype = dtype;
          a.layout = layout;
          a.dirty_rows = s.dirty_rows;
          a.dirty_columns = s.dirty_columns;
          a.window_rows = s.window_rows;
          a.window_columns = s.window_columns;
          a.images = images;
          a.windows = windows;
          a.clean = clean_buffer.data();
          a.dirty = dirty_buffer.data();
          a.dirty_origin = dirty_corner.data();
          a.window_origin = window_corner.data();
          a.image_index = indexed ? index_buffer.data() : nullptr;
          a.pad_value = -1.7;
          a.output = output.data();
          a.axes = s.axes;
          a.dirty_slices = s.dirty_slices;
          a.window_slices = s.window_slices;
          run(backend, splice_cpu, splice_cuda, a);
          CHECK(equal(decode(dtype, output.read()), expected));
        }
      }
    }
  }
}

TEST(splice_index_out_of_range_is_nan_in_cuda) {
  for (const Backend& backend : backends()) {
    if (!backend.cuda) continue;
    for (int64_t pixel : {1, 4}) {
      describe(backend.name, " pixel ", pixel);
      const Buffer clean(backend, encode(Dtype::float32, random_values(6 * pixel, 7)));
      const Buffer dirty(backend, encode(Dtype::float32, random_values(2 * pixel, 8)));
      const Indices zeros(backend, {0, 0, 0, 0}), index(backend, {1, -1});
      const Buffer output(backend, encode(Dtype::float32, std::vector<double>(static_cast<size_t>(8 * pixel), 9)));
      Splice a{};
      a.dtype = Dtype::float32;
      a.layout = {1, 2, 3, pixel};
      a.dirty_rows = a.dirty_columns = 1;
      a.window_rows = a.window_columns = 2;
      a.images = 1;
      a.windows = 2;
      a.clean = clean.data();
      a.dirty = dirty.data();
      a.dirty_origin = a.window_origin = zeros.data();
      a.image_index = index.data();
      a.output = output.data();
      run(backend, splice_cpu, splice_cuda, a);
      CHECK(equal(decode(Dtype::float32, output.read()), std::vector<double>(static_cast<size_t>(8 * pixel), NAN)));
    }
  }
}

TEST(splice_of_nothing) {
  for (const Backend& backend : backends()) {
    describe(backend.name);
    Splice a{};
    a.layout = {3, 4, 5, 1};
    a.window_rows = a.window_columns = 2;
    run(backend, splice_cpu, splice_cuda, a);
    const Indices zeros(backend, {0, 0, 0, 0});
    a.window_rows = 0;
    a.images = 1;
    a.windows = 2;
    a.dirty_origin = a.window_origin = zeros.data();
    run(backend, splice_cpu, splice_cuda, a);
  }
}
