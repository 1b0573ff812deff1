#include "tensors.h"

namespace fastviz {
namespace {

Tensor patch_search(const Tensor& sample, const Tensor& neighbourhood, const Tensor& mask, const Tensor& weights) {
  check_dims(sample, "sample", 3);
  check_dims(neighbourhood, "neighbourhood", 4);
  check_size(neighbourhood, "neighbourhood", 1, sample.size(0));
  check_same_dtype(neighbourhood, "neighbourhood", sample, "sample");
  check_same_device(neighbourhood, "neighbourhood", sample, "sample");
  const int64_t number = neighbourhood.size(0), height = neighbourhood.size(2), width = neighbourhood.size(3);
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= sample.size(1) && width <= sample.size(2),
                  "neighbourhood should have 1 to ", sample.size(1), " rows and 1 to ", sample.size(2),
                  " columns, got ", height, " and ", width);
  check_dims(mask, "mask", 3);
  check_size(mask, "mask", 0, number);
  check_size(mask, "mask", 1, height);
  check_size(mask, "mask", 2, width);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "mask should be bool, got another dtype");
  check_same_device(mask, "mask", sample, "sample");
  check_dims(weights, "weights", 2);
  check_size(weights, "weights", 0, height);
  check_size(weights, "weights", 1, width);
  check_same_dtype(weights, "weights", sample, "sample");
  check_same_device(weights, "weights", sample, "sample");
  check_weights(weights);
  const Tensor picture = in_order(sample, false), pixels = in_order(neighbourhood, false);
  const Tensor known = in_order(mask, false), weight = in_order(weights, false);
  PatchSearch arguments{};
  arguments.dtype = dtype_of(sample, "sample");
  arguments.channels = sample.size(0);
  arguments.rows = sample.size(1);
  arguments.columns = sample.size(2);
  arguments.window_rows = height;
  arguments.window_columns = width;
  arguments.neighbourhoods = number;
  Tensor output = new_tensor(sample, {number, arguments.output_rows(), arguments.output_columns()}, sum_dtype(sample));
  arguments.sample = picture.const_data_ptr();
  arguments.neighbourhood = pixels.const_data_ptr();
  arguments.mask = known.const_data_ptr<bool>();
  arguments.weights = weight.const_data_ptr();
  arguments.output = output.mutable_data_ptr();
  if (number > 0) launch(FASTVIZ_KERNEL(patch_search), sample, arguments);
  return output;
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) { m.impl("patch_search", TORCH_BOX(&fastviz::patch_search)); }
