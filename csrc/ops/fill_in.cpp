#include <algorithm>
#include <cmath>

#include "tensors.h"

// On the CPU only: a GPU solves many planes side by side (fastviz/evaluation/_imputation.py).
#ifndef FASTVIZ_CUDA

namespace fastviz {
namespace {

Tensor fill_in(Tensor values, const Tensor& removed, double accuracy, int64_t most_steps) {
  check_dims(values, "values", 4);
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Double, "values should be float64, got another dtype");
  STD_TORCH_CHECK(values.is_contiguous(), "values should be contiguous: it is written to");
  check_dims(removed, "removed", 3);
  check_size(removed, "removed", 0, values.size(0));
  check_size(removed, "removed", 1, values.size(2));
  check_size(removed, "removed", 2, values.size(3));
  STD_TORCH_CHECK(removed.scalar_type() == ScalarType::Bool, "removed should be bool, got another dtype");
  STD_TORCH_CHECK(accuracy > 0 && std::isfinite(accuracy), "accuracy should be finite and above 0, got ", accuracy);
  STD_TORCH_CHECK(most_steps > 0, "most_steps should be at least 1, got ", most_steps);
  const Tensor mask = in_order(removed, false);
  FillIn arguments{};
  arguments.pictures = values.size(0);
  arguments.channels = values.size(1);
  arguments.rows = values.size(2);
  arguments.columns = values.size(3);
  arguments.accuracy = accuracy;
  arguments.most_steps = most_steps;
  arguments.removed = mask.const_data_ptr<bool>();
  arguments.values = values.mutable_data_ptr<double>();
  Tensor steps = new_tensor(values, {arguments.pictures, arguments.channels}, ScalarType::Long);
  arguments.steps = steps.mutable_data_ptr<int64_t>();
  const int64_t plane = arguments.rows * arguments.columns;
  for (int64_t picture = 0; picture < arguments.pictures; ++picture) {
    const bool* first = arguments.removed + picture * plane;
    const auto count = std::count(first, first + plane, true);
    STD_TORCH_CHECK(count > 0 && count < plane, "removed should be some pixels of each picture and not all, got ",
                    count, " of ", plane);
  }
  if (arguments.pictures > 0 && arguments.channels > 0) launch(FASTVIZ_KERNEL(fill_in), values, arguments);
  return steps;
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) { m.impl("_fill_in", TORCH_BOX(&fastviz::fill_in)); }

#endif
