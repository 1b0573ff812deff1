#ifndef FASTVIZ_CUDA

#include "dispatch.h"

namespace fastviz {
namespace {

std::tuple<int64_t, int64_t> instructions_of_kernels() {
  return {static_cast<int64_t>(instructions()), static_cast<int64_t>(processor_instructions())};
}

}  // namespace
}  // namespace fastviz

// It takes no tensor whose device could choose.
STABLE_TORCH_LIBRARY_IMPL(fastviz, CompositeExplicitAutograd, m) {
  m.impl("_instructions", TORCH_BOX(&fastviz::instructions_of_kernels));
}

#endif
