#include <algorithm>
#include <cmath>

#include "backends.h"
#include "harness.h"

using namespace fastviz;
using namespace fastviz::test;

namespace {

struct Shape {
  int64_t images, channels, rows, columns;
};

struct Norm {
  VariationNorm norm;
  double beta;
};

struct Expected {
  std::vector<double> values, gradient;
};

enum class Wanted { value, gradient, both };

/// The formula of kernels.h, pixel by pixel.
Expected definition(const Layout& layout, int64_t images, const Norm& norm, bool crop, double vertical,
                    double horizontal, const std::vector<double>& x) {
  Expected result{std::vector<double>(static_cast<size_t>(images)), std::vector<double>(x.size())};
  size_t here = 0;
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t plane = 0; plane < layout.planes; ++plane) {
      for (int64_t i = 0; i < layout.rows; ++i) {
        for (int64_t j = 0; j < layout.row(); ++j, ++here) {
          const bool has_below = i + 1 < layout.rows, has_right = j + layout.pixel < layout.row();
          if (crop && !(has_below && has_right)) continue;
          const size_t below = has_below ? here + static_cast<size_t>(layout.row()) : here;
          const size_t right = has_right ? here + static_cast<size_t>(layout.pixel) : here;
          const double v = x[below] - x[here], h = x[right] - x[here];
          double value = 0, by_v = 0, by_h = 0;
          if (norm.norm == VariationNorm::isotropic) {
            const double s = v * v + h * h;
            value = vertical * std::pow(s, norm.beta / 2);
            const double slope = s > 0 ? vertical * norm.beta * std::pow(s, norm.beta / 2 - 1) : 0;
            by_v = slope * v;
            by_h = slope * h;
          } else if (norm.norm == VariationNorm::l1) {
            value = vertical * std::fabs(v) + horizontal * std::fabs(h);
            by_v = vertical * ((v > 0) - (v < 0));
            by_h = horizontal * ((h > 0) - (h < 0));
          } else {
            value = vertical * v * v + horizontal * h * h;
            by_v = 2 * vertical * v;
            by_h = 2 * horizontal * h;
          }
          result.values[static_cast<size_t>(image)] += value;
          result.gradient[below] += by_v;
          result.gradient[right] += by_h;
          result.gradient[here] -= by_v + by_h;
        }
      }
    }
  }
  return result;
}

/// Terms and gradients are sums in float32 of values that are rounded to the element type at the end.
double tolerance_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
      return 1e-12;
    case Dtype::float32:
      return 1e-5;
    case Dtype::float16:
      return 1e-3;
    case Dtype::bfloat16:
      return 8e-3;
  }
  return 0;
}

void check_total_variation(const Shape& shape, const Norm& norm, bool crop, bool channels_last, Dtype dtype,
                           Wanted wanted, size_t shift) {
  const Layout layout = layout_of(channels_last, shape.channels, shape.rows, shape.columns);
  const double vertical = 0.75, horizontal = norm.norm == VariationNorm::isotropic ? 123.0 : 1.5;
  const std::vector<double> input = rounded(dtype, random_values(shape.images * layout.picture(), 12));
  Expected expected = definition(layout, shape.images, norm, crop, vertical, horizontal, input);
  const bool with_value = wanted != Wanted::gradient, with_gradient = wanted != Wanted::value;
  const bool with_factor = wanted == Wanted::gradient;
  std::vector<double> factor(static_cast<size_t>(shape.images));
  for (size_t n = 0; n < factor.size(); ++n) factor[n] = static_cast<double>(n) - 1.5;
  for (size_t i = 0; with_factor && i < expected.gradient.size(); ++i) {
    expected.gradient[i] *= factor[i / static_cast<size_t>(layout.picture())];
  }
  SameBits same_value, same_gradient;
  for (const Backend& backend : backends()) {
    describe(backend.name, " ", name_of(dtype), " ", shape.images, "x", shape.channels, "x", shape.rows, "x",
             shape.columns, channels_last ? " channels last" : "", " norm ", static_cast<int>(norm.norm), " beta ",
             norm.beta, crop ? " crop" : "", " wanted ", static_cast<int>(wanted), " shift ", shift);
    const Buffer input_buffer(backend, encode(dtype, input), shift);
    const Buffer gradient(backend, input.size() * bytes_of(dtype), shift);
    const Buffer value(backend, static_cast<size_t>(shape.images) * bytes_of(sum_dtype(dtype)));
    TotalVariation a{};
    a.dtype = dtype;
    a.layout = layout;
    a.images = shape.images;
    a.norm = norm.norm;
    a.beta = norm.beta;
    a.crop = crop;
    a.vertical_weight = vertical;
    a.horizontal_weight = horizontal;
    a.input = input_buffer.data();
    a.value = with_value ? value.data() : nullptr;
    a.gradient = with_gradient ? gradient.data() : nullptr;
    const Buffer factor_buffer(backend, encode(sum_dtype(dtype), factor));
    a.factor = with_factor ? factor_buffer.data() : nullptr;
    const size_t bytes = backend.cuda ? total_variation_cuda_workspace(a) : total_variation_cpu_workspace(a);
    const Buffer workspace(backend, bytes);
    a.workspace = workspace.data();
    run(backend, total_variation_cpu, total_variation_cuda, a);
    if (with_value) {
      const std::vector<uint8_t> value_bytes = value.read();
      same_value.check(backend, value_bytes);
      const double tolerance = dtype == Dtype::float64 ? 1e-12 : 1e-5;
      CHECK(close(decode(sum_dtype(dtype), value_bytes), expected.values, tolerance, tolerance));
    }
    if (!with_gradient) continue;
    const std::vector<uint8_t> gradient_bytes = gradient.read();
    same_gradient.check(backend, gradient_bytes);
    // A gradient is a difference of terms as large as the largest of them.
    double largest = 0;
    for (double g : expected.gradient) largest = std::max(largest, std::fabs(g));
    const double absolute = (dtype == Dtype::float64 ? 1e-13 : 1e-6) * largest;
    CHECK(close(decode(dtype, gradient_bytes), expected.gradient, absolute, tolerance_of(dtype)));
  }
}

const std::vector<Norm> norms = {{VariationNorm::isotropic, 1}, {VariationNorm::isotropic, 1.7},
                                 {VariationNorm::isotropic, 2}, {VariationNorm::isotropic, 2.5},
                                 {VariationNorm::isotropic, 3}, {VariationNorm::isotropic, 4.5},
                                 {VariationNorm::l1, 0},        {VariationNorm::l2, 0}};

}  // namespace

TEST(total_variation_norms) {
  for (const Norm& norm : norms) {
    for (int variant = 0; variant < 8; ++variant) {
      for (Dtype dtype : all_dtypes) {
        for (Wanted wanted : {Wanted::value, Wanted::gradient, Wanted::both}) {
          const size_t shift = variant & 4 ? bytes_of(dtype) : 0;
          check_total_variation({2, 3, 9, 16}, norm, variant & 1, variant & 2, dtype, wanted, shift);
        }
      }
    }
  }
}

TEST(total_variation_shapes) {
  const std::vector<Shape> shapes = {{1, 1, 1, 1}, {2, 1, 1, 5},  {2, 1, 5, 1},   {1, 3, 2, 2},   {3, 2, 4, 8},
                                     {1, 8, 5, 3}, {1, 16, 3, 2}, {2, 3, 13, 31}, {1, 2, 33, 64}, {1, 1, 50, 136}};
  for (const Shape& shape : shapes) {
    for (const Norm& norm : {norms[0], norms[2], norms[6]}) {
      for (int variant = 0; variant < 8; ++variant) {
        for (Dtype dtype : all_dtypes) {
          check_total_variation(shape, norm, variant & 1, variant & 2, dtype,
                                variant & 4 ? Wanted::both : Wanted::gradient, 0);
        }
      }
    }
  }
}

TEST(total_variation_of_nothing_is_zero) {
  for (const Shape& shape : {Shape{2, 0, 3, 4}, Shape{2, 3, 0, 4}, Shape{2, 3, 4, 0}, Shape{0, 3, 4, 4}}) {
    check_total_variation(shape, norms[2], true, false, Dtype::float32, Wanted::both, 0);
    check_total_variation(shape, norms[0], false, true, Dtype::float16, Wanted::value, 0);
  }
}
