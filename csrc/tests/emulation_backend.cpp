// The CUDA kernels on the CPU, see emulation.h.

#include "../kernels/cuda/gram.cu"
#include "../kernels/cuda/guided_relu.cu"
#include "../kernels/cuda/occlude.cu"
#include "../kernels/cuda/patch_search.cu"
#include "../kernels/cuda/splice.cu"
#include "../kernels/cuda/total_variation.cu"
#include "backends.h"

namespace fastviz {
namespace test {

std::vector<Backend> cuda_backends() {
  const auto backend = [](const char* name, emulation::Order order) {
    return Backend{name, true, {nullptr, 1}, [order](const std::function<void(Stream)>& launcher) {
                     emulation::order = order;
                     launcher(nullptr);
                   }};
  };
  return {backend("emulated, threads forward", emulation::Order::forward),
          backend("emulated, threads backward", emulation::Order::backward)};
}

bool cpu_too() { return false; }

void* device_allocate(size_t bytes) { return ::operator new(bytes); }
void device_free(void* memory) { ::operator delete(memory); }
void device_upload(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
void device_download(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }

}  // namespace test
}  // namespace fastviz
