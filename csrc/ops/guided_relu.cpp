#include <optional>
#include <string>
#include <tuple>

#include "tensors.h"

namespace fastviz {
namespace {

ReluRule rule_of(const std::string& rule) {
  if (rule == "plain") return ReluRule::plain;
  if (rule == "guided") return ReluRule::guided;
  STD_TORCH_CHECK(rule == "deconvnet", "rule should be one of 'plain', 'guided', 'deconvnet', got '", rule, "'");
  return ReluRule::deconvnet;
}

/// Rectifies `input` into `output`, both in the same order of memory, and returns the mask.
Tensor rectify(const Tensor& input, Tensor& output, const std::string& rule, std::optional<double> upper,
               bool with_mask) {
  STD_TORCH_CHECK(!upper || *upper > 0, "upper should be above 0, got ", *upper);
  Tensor mask = new_tensor(input, {with_mask ? (input.numel() + 7) / 8 : 0}, ScalarType::Byte);
  GuidedRelu arguments{};
  arguments.dtype = dtype_of(input, "x");
  arguments.rule = rule_of(rule);
  arguments.bounded = upper.has_value();
  arguments.upper = upper.value_or(0.0);
  arguments.count = input.numel();
  arguments.input = input.const_data_ptr();
  arguments.output = output.mutable_data_ptr();
  arguments.mask = with_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr;
  if (input.numel() > 0) launch(FASTVIZ_KERNEL(guided_relu), input, arguments);
  return mask;
}

std::tuple<Tensor, Tensor> guided_relu(const Tensor& x, const std::string& rule, std::optional<double> upper,
                                       bool with_mask) {
  const bool channels_last = is_channels_last(x);
  Tensor output = new_like(x, channels_last);
  const Tensor mask = rectify(in_order(x, channels_last), output, rule, upper, with_mask);
  return {output, mask};
}

Tensor guided_relu_in_place(Tensor x, const std::string& rule, std::optional<double> upper, bool with_mask) {
  STD_TORCH_CHECK(x.is_contiguous() || is_channels_last(x), "x should be contiguous or channels_last");
  return rectify(x, x, rule, upper, with_mask);
}

Tensor guided_relu_backward(const Tensor& grad, const Tensor& mask, const std::string& rule, bool channels_last) {
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte, "mask should be uint8, got another dtype");
  check_dims(mask, "mask", 1);
  check_same_device(mask, "mask", grad, "grad");
  const bool masked = rule_of(rule) != ReluRule::deconvnet || mask.numel() > 0;
  if (masked) check_size(mask, "mask", 0, (grad.numel() + 7) / 8);
  const Tensor values = in_order(grad, channels_last);
  const Tensor bits = in_order(mask, false);
  Tensor output = new_like(grad, channels_last);
  GuidedReluBackward arguments{};
  arguments.dtype = dtype_of(grad, "grad");
  arguments.rule = rule_of(rule);
  arguments.count = grad.numel();
  arguments.grad = values.const_data_ptr();
  arguments.mask = masked ? bits.const_data_ptr<uint8_t>() : nullptr;
  arguments.output = output.mutable_data_ptr();
  if (grad.numel() > 0) launch(FASTVIZ_KERNEL(guided_relu_backward), grad, arguments);
  return output;
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) {
  m.impl("guided_relu", TORCH_BOX(&fastviz::guided_relu));
  m.impl("_guided_relu_in_place", TORCH_BOX(&fastviz::guided_relu_in_place));
  m.impl("_guided_relu_backward", TORCH_BOX(&fastviz::guided_relu_backward));
}
