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

/// The rule is the backward pass's; the forward pass is the same for all and only checks the word.
std::tuple<Tensor, Tensor> guided_relu(const Tensor& x, const std::string& rule, bool with_mask) {
  rule_of(rule);
  const bool channels_last = is_channels_last(x);
  const Tensor input = in_order(x, channels_last);
  Tensor output = new_like(x, channels_last);
  Tensor mask = new_tensor(x, {with_mask ? (x.numel() + 7) / 8 : 0}, ScalarType::Byte);
  GuidedRelu arguments{};
  arguments.dtype = dtype_of(x, "x");
  arguments.count = x.numel();
  arguments.input = input.const_data_ptr();
  arguments.output = output.mutable_data_ptr();
  arguments.mask = with_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr;
  if (x.numel() > 0) launch(FASTVIZ_KERNEL(guided_relu), x, arguments);
  return {output, mask};
}

Tensor guided_relu_backward(const Tensor& grad, const Tensor& mask, const std::string& rule, bool channels_last) {
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte, "mask should be uint8, got another dtype");
  check_dims(mask, "mask", 1);
  if (rule_of(rule) != ReluRule::deconvnet) check_size(mask, "mask", 0, (grad.numel() + 7) / 8);
  const Tensor values = in_order(grad, channels_last);
  const Tensor bits = in_order(mask, false);
  Tensor output = new_like(grad, channels_last);
  GuidedReluBackward arguments{};
  arguments.dtype = dtype_of(grad, "grad");
  arguments.rule = rule_of(rule);
  arguments.count = grad.numel();
  arguments.grad = values.const_data_ptr();
  arguments.mask = bits.const_data_ptr<uint8_t>();
  arguments.output = output.mutable_data_ptr();
  if (grad.numel() > 0) launch(FASTVIZ_KERNEL(guided_relu_backward), grad, arguments);
  return output;
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) {
  m.impl("guided_relu", TORCH_BOX(&fastviz::guided_relu));
  m.impl("_guided_relu_backward", TORCH_BOX(&fastviz::guided_relu_backward));
}
