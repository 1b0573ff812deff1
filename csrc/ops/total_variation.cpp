#include <string>
#include <tuple>

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

std::tuple<Tensor, Tensor> total_variation(const Tensor& x, const std::string& norm, double beta, bool crop, bool mean,
                                           bool with_gradient) {
  check_dims(x, "x", 4);
  STD_TORCH_CHECK(beta > 0, "beta should be above 0, got ", beta);
  const bool channels_last = is_channels_last(x);
  const Tensor input = in_order(x, channels_last);
  Tensor value = new_tensor(x, {x.size(0)}, sum_dtype(x));
  Tensor gradient = with_gradient ? new_like(x, channels_last) : new_tensor(x, {0}, x.scalar_type());
  TotalVariation arguments{};
  arguments.dtype = dtype_of(x, "x");
  arguments.layout = layout_of(x, channels_last);
  arguments.images = x.size(0);
  arguments.norm = norm_of(norm);
  arguments.beta = beta;
  arguments.crop = crop;
  arguments.vertical_weight = arguments.horizontal_weight = 1;
  if (mean) {
    const int64_t rows = x.size(2), columns = x.size(3);
    const bool isotropic = arguments.norm == VariationNorm::isotropic;
    arguments.vertical_weight =
        mean_weight(x.size(1), isotropic && !crop ? rows : rows - 1, crop ? columns - 1 : columns);
    arguments.horizontal_weight = mean_weight(x.size(1), crop ? rows - 1 : rows, columns - 1);
  }
  arguments.input = input.const_data_ptr();
  arguments.value = value.mutable_data_ptr();
  arguments.gradient = with_gradient ? gradient.mutable_data_ptr() : nullptr;
  const Tensor workspace = new_workspace(x, FASTVIZ_WORKSPACE(total_variation)(arguments));
  arguments.workspace = workspace.mutable_data_ptr();
  if (x.size(0) > 0) launch(FASTVIZ_KERNEL(total_variation), x, arguments);
  return {value, gradient};
}

Tensor total_variation_backward(const Tensor& grad, const Tensor& gradient) {
  check_dims(gradient, "gradient", 4);
  check_dims(grad, "grad", 1);
  check_size(grad, "grad", 0, gradient.size(0));
  STD_TORCH_CHECK(grad.scalar_type() == sum_dtype(gradient), "grad should have the dtype of the value");
  const bool channels_last = is_channels_last(gradient);
  const Tensor values = in_order(gradient, channels_last);
  const Tensor factors = in_order(grad, false);
  Tensor output = new_like(gradient, channels_last);
  TotalVariationBackward arguments{};
  arguments.dtype = dtype_of(gradient, "gradient");
  arguments.images = gradient.size(0);
  arguments.picture = gradient.size(1) * gradient.size(2) * gradient.size(3);
  arguments.grad = factors.const_data_ptr();
  arguments.gradient = values.const_data_ptr();
  arguments.output = output.mutable_data_ptr();
  if (output.numel() > 0) launch(FASTVIZ_KERNEL(total_variation_backward), gradient, arguments);
  return output;
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) {
  m.impl("total_variation", TORCH_BOX(&fastviz::total_variation));
  m.impl("_total_variation_backward", TORCH_BOX(&fastviz::total_variation_backward));
}
