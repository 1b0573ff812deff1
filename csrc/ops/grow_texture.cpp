#include <algorithm>
#include <cmath>

#include "tensors.h"

// On the CPU only: a GPU is given all pixels at once that may be searched for together (fastviz/methods/texture.py).
#ifndef FASTVIZ_CUDA

namespace fastviz {
namespace {

void check_in_place(const Tensor& tensor, const char* argument, const Tensor& sample, int64_t dims) {
  check_dims(tensor, argument, dims);
  check_same_device(tensor, argument, sample, "sample");
  STD_TORCH_CHECK(tensor.is_contiguous(), argument, " should be contiguous: it is written to");
}

void grow_texture(Tensor values, Tensor filled, Tensor sources, const Tensor& places, const Tensor& chances,
                  const Tensor& sample, const std::optional<Tensor>& usable, const Tensor& weights, double epsilon,
                  double limit) {
  check_dims(sample, "sample", 3);
  check_in_place(values, "values", sample, 3);
  check_size(values, "values", 0, sample.size(0));
  check_same_dtype(values, "values", sample, "sample");
  check_in_place(filled, "filled", sample, 2);
  check_in_place(sources, "sources", sample, 2);
  STD_TORCH_CHECK(filled.scalar_type() == ScalarType::Bool, "filled should be bool, got another dtype");
  check_int64(sources, "sources");
  for (int64_t dim : {0, 1}) {
    check_size(filled, "filled", dim, values.size(dim + 1));
    check_size(sources, "sources", dim, values.size(dim + 1));
  }
  check_dims(weights, "weights", 2);
  check_size(weights, "weights", 1, weights.size(0));
  check_same_dtype(weights, "weights", sample, "sample");
  check_weights(weights);
  STD_TORCH_CHECK(epsilon >= 0 && std::isfinite(epsilon), "epsilon should be finite and at least 0, got ", epsilon);
  STD_TORCH_CHECK(!std::isnan(limit), "limit should be a number, got ", limit);
  GrowTexture arguments{};
  arguments.dtype = dtype_of(sample, "sample");
  STD_TORCH_CHECK(arguments.dtype == Dtype::float32 || arguments.dtype == Dtype::float64,
                  "sample should be float32 or float64, got another dtype");
  arguments.channels = sample.size(0);
  arguments.rows = sample.size(1);
  arguments.columns = sample.size(2);
  arguments.window = weights.size(0);
  STD_TORCH_CHECK(arguments.window % 2 == 1 && arguments.window > 1 && arguments.window_rows() > 0 &&
                      arguments.window_columns() > 0,
                  "weights should have an odd number of rows, at least 3 and at most the sides of sample, got ",
                  arguments.window);
  arguments.canvas_rows = values.size(1);
  arguments.canvas_columns = values.size(2);
  check_dims(places, "places", 1);
  check_int64(places, "places");
  arguments.pixels = places.size(0);
  check_dims(chances, "chances", 1);
  check_size(chances, "chances", 0, arguments.pixels);
  STD_TORCH_CHECK(chances.scalar_type() == ScalarType::Double, "chances should be float64, got another dtype");
  std::optional<Tensor> windows;
  if (usable) {
    check_dims(*usable, "usable", 2);
    check_size(*usable, "usable", 0, arguments.window_rows());
    check_size(*usable, "usable", 1, arguments.window_columns());
    STD_TORCH_CHECK(usable->scalar_type() == ScalarType::Bool, "usable should be bool, got another dtype");
    windows = in_order(*usable, false);
    arguments.usable = windows->const_data_ptr<bool>();
    const bool* end = arguments.usable + arguments.window_rows() * arguments.window_columns();
    STD_TORCH_CHECK(std::find(arguments.usable, end, true) != end, "usable should leave a window, got none");
  }
  const Tensor picture = in_order(sample, false), weight = in_order(weights, false);
  const Tensor place = in_order(places, false), chance = in_order(chances, false);
  arguments.sample = picture.const_data_ptr();
  arguments.weights = weight.const_data_ptr();
  arguments.places = place.const_data_ptr<int64_t>();
  arguments.chances = chance.const_data_ptr<double>();
  arguments.epsilon = epsilon;
  arguments.limit = limit;
  arguments.values = values.mutable_data_ptr();
  arguments.filled = filled.mutable_data_ptr<bool>();
  arguments.sources = sources.mutable_data_ptr<int64_t>();
  const int64_t reach = arguments.window / 2;
  for (int64_t i = 0; i < arguments.pixels; ++i) {
    const int64_t at = arguments.places[i], row = at / arguments.canvas_columns, column = at % arguments.canvas_columns;
    STD_TORCH_CHECK(at >= 0 && row >= reach && row < arguments.canvas_rows - reach && column >= reach &&
                        column < arguments.canvas_columns - reach,
                    "places should have their windows inside of values, got ", at);
    STD_TORCH_CHECK(arguments.chances[i] >= 0 && arguments.chances[i] < 1,
                    "chances should be at least 0 and below 1, got ", arguments.chances[i]);
  }
  if (arguments.pixels > 0) launch(FASTVIZ_KERNEL(grow_texture), sample, arguments);
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) { m.impl("_grow_texture", TORCH_BOX(&fastviz::grow_texture)); }

#endif
