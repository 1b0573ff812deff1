// Where there is no CUDA toolkit: no CUDA backend, so none of these launchers is called.

#include <cstdio>
#include <cstdlib>

#include "backends.h"

namespace fastviz {

void occlude_cuda(Stream, const Occlude&) { std::abort(); }
void occlude_backward_cuda(Stream, const OccludeBackward&) { std::abort(); }
void splice_cuda(Stream, const Splice&) { std::abort(); }
void guided_relu_cuda(Stream, const GuidedRelu&) { std::abort(); }
void guided_relu_backward_cuda(Stream, const GuidedReluBackward&) { std::abort(); }
size_t total_variation_cuda_workspace(const TotalVariation&) { std::abort(); }
void total_variation_cuda(Stream, const TotalVariation&) { std::abort(); }
size_t gram_cuda_workspace(const Gram&) { std::abort(); }
void gram_cuda(Stream, const Gram&) { std::abort(); }
void patch_search_cuda(Stream, const PatchSearch&) { std::abort(); }

namespace test {

std::vector<Backend> cuda_backends() {
  if (std::getenv("FAIL_WITHOUT_CUDA")) {
    std::fprintf(stderr, "FAIL_WITHOUT_CUDA is set, but this program was built without the CUDA kernels\n");
    std::exit(3);
  }
  return {};
}
bool cpu_too() { return true; }

void* device_allocate(size_t) { std::abort(); }
void device_free(void*) { std::abort(); }
void device_upload(void*, const void*, size_t) { std::abort(); }
void device_download(void*, const void*, size_t) { std::abort(); }

}  // namespace test
}  // namespace fastviz
