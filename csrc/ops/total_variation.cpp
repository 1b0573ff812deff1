#include <string>

#include "tensors.h"

namespace fastviz {
namespace {

VariationNorm norm_of(const std::string& norm) {
  if (norm == "isotropic") return VariationNorm::isotropic;
  if (norm == "l1") return VariationNorm::l1;
  STD_TORCH_CHECK(norm == "l2", "norm should be one of 'isotropic', 'l1', 'l2', got '", norm, "'");
  return VariationNorm::l2;
}

/// One over the number of terms; a picture without terms has the value 0.
double mean_weight(int64_t channels, int64_t rows, int64_t columns) {
  const int64_t terms = channels * rows * columns;
  return terms > 0 ? 1.0 / static_cast<double>(terms) : 0.0;
}

/// What value and gradient share; `input` is x in the memory order that is walked over.
TotalVariation arguments_of(const Tensor& input, const std::string& norm, double beta, bool crop, bool mean) {
  STD_TORCH_CHECK(beta > 0, "beta should be above 0, got ", beta);
  TotalVariation arguments{};
  arguments.dtype = dtype_of(input, "x");
  arguments.layout = layout_of(input, is_channels_last(input));
  arguments.images = input.size(0);
  arguments.norm = norm_of(norm);
  arguments.beta = beta;
  arguments.crop = crop;
  arguments.vertical_weight = arguments.horizontal_weight = 1;
  if (mean) {
    const int64_t rows = input.size(2), columns = input.size(3);
    const bool isotropic = arguments.norm == VariationNorm::isotropic;
    arguments.vertical_weight =
        mean_weight(input.size(1), isotropic && !crop ? rows : rows - 1, crop ? columns - 1 : columns);
    arguments.horizontal_weight = mean_weight(input.size(1), crop ? rows - 1 : rows, columns - 1);
  }
  arguments.input = input.const_data_ptr();
  return arguments;
}

void run(TotalVariation& arguments, const Tensor& input) {
  const Tensor workspace = new_workspace(input, FASTVIZ_WORKSPACE(total_variation)(arguments));
  arguments.workspace = workspace.mutable_data_ptr();
  launch(FASTVIZ_KERNEL(total_variation), input, arguments);
}

Tensor total_variation(const Tensor& x, const std::string& norm, double beta, bool crop, bool mean) {
  check_dims(x, "x", 4);
  const Tensor input = in_order(x, is_channels_last(x));
  TotalVariation arguments = arguments_of(input, norm, beta, crop, mean);
  Tensor value = new_tensor(x, {x.size(0)}, sum_dtype(x));
  arguments.value = value.mutable_data_ptr();
  if (x.size(0) > 0) run(arguments, input);
  return value;
}

Tensor total_variation_backward(const Tensor& grad, const Tensor& x, const std::string& norm, double beta, bool crop,
                                bool mean) {
  check_dims(x, "x", 4);
  check_dims(grad, "grad", 1);
  check_size(grad, "grad", 0, x.size(0));
  check_same_device(grad, "grad", x, "x");
  STD_TORCH_CHECK(grad.scalar_type() == sum_dtype(x), "grad should have the dtype of the value");
  const Tensor input = in_order(x, is_channels_last(x));
  const Tensor factor = in_order(grad, false);
  TotalVariation arguments = arguments_of(input, norm, beta, crop, mean);
  Tensor gradient = new_like(x, is_channels_last(x));
  arguments.gradient = gradient.mutable_data_ptr();
  arguments.factor = factor.const_data_ptr();
  if (gradient.numel() > 0) run(arguments, input);
  return gradient;
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) {
  m.impl("total_variation", TORCH_BOX(&fastviz::total_variation));
  m.impl("_total_variation_backward", TORCH_BOX(&fastviz::total_variation_backward));
}
