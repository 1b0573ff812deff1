// The CUDA kernels on the GPU, if there is one: launched on a stream, and captured in a graph that is then launched.

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "backends.h"

namespace fastviz {
namespace test {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(3);
}

cudaStream_t stream() {
  static const cudaStream_t created = [] {
    cudaStream_t result;
    check(cudaStreamCreateWithFlags(&result, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return result;
  }();
  return created;
}

void launch_directly(const std::function<void(Stream)>& launcher) {
  launcher(stream());
  check(cudaGetLastError(), "launch");
  check(cudaStreamSynchronize(stream()), "kernel");
}

void launch_as_graph(const std::function<void(Stream)>& launcher) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeGlobal), "begin of capture");
  launcher(stream());
  check(cudaStreamEndCapture(stream(), &graph), "end of capture");
  check(cudaGetLastError(), "captured launch");
  check(cudaGraphInstantiate(&executable, graph, 0), "graph");
  check(cudaGraphLaunch(executable, stream()), "launch of the graph");
  check(cudaStreamSynchronize(stream()), "graph's kernel");
  check(cudaGraphExecDestroy(executable), "graph");
  check(cudaGraphDestroy(graph), "graph");
}

}  // namespace

std::vector<Backend> cuda_backends() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    // FAIL_WITHOUT_CUDA: a machine that promises a GPU must not pass by leaving the tests out.
    if (std::getenv("FAIL_WITHOUT_CUDA")) {
      std::fprintf(stderr, "FAIL_WITHOUT_CUDA is set, but CUDA finds no GPU\n");
      std::exit(3);
    }
    std::fprintf(stderr, "no GPU: the CUDA launchers are not tested\n");
    return {};
  }
  return {{"cuda", true, {nullptr}, launch_directly}, {"cuda graph", true, {nullptr}, launch_as_graph}};
}

bool cpu_too() { return true; }

void* device_allocate(size_t bytes) {
  void* memory = nullptr;
  if (bytes > 0) check(cudaMalloc(&memory, bytes), "cudaMalloc");
  return memory;
}
void device_free(void* memory) { check(cudaFree(memory), "cudaFree"); }
void device_upload(void* device, const void* host, size_t bytes) {
  check(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "upload");
}
void device_download(void* host, const void* device, size_t bytes) {
  check(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "download");
}

}  // namespace test
}  // namespace fastviz
