// The one place where the two libraries differ. Every operator file is compiled twice: for `_cpu`, and with
// FASTVIZ_CUDA defined for `_cuda`; FASTVIZ_DEVICE is its dispatch key and FASTVIZ_KERNEL(name) its launcher.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/kernels.h"

#ifdef FASTVIZ_CUDA
#include <cuda_runtime.h>
#define FASTVIZ_DEVICE CUDA
#define FASTVIZ_KERNEL(name) fastviz::name##_cuda
#define FASTVIZ_WORKSPACE(name) fastviz::name##_cuda_workspace
#else
#define FASTVIZ_DEVICE CPU
#define FASTVIZ_KERNEL(name) fastviz::name##_cpu
#define FASTVIZ_WORKSPACE(name) fastviz::name##_cpu_workspace
#endif

namespace fastviz {

using torch::stable::Tensor;

#ifdef FASTVIZ_CUDA

/// Runs a launcher on the tensor's device and torch's current stream, and checks the launch.
template <typename Arguments>
void launch(void (*kernel)(Stream, const Arguments&), const Tensor& tensor, const Arguments& arguments) {
  const auto device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  kernel(static_cast<Stream>(stream), arguments);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

#else

inline void run_parallel(int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
  torch::stable::parallel_for(begin, end, grain, [=](int64_t first, int64_t last) { body(first, last, context); });
}

/// Runs a kernel on torch's threads.
template <typename Arguments>
void launch(void (*kernel)(const Parallel&, const Arguments&), const Tensor&, const Arguments& arguments) {
  kernel(Parallel{run_parallel, torch::stable::get_num_threads()}, arguments);
}

#endif

}  // namespace fastviz
