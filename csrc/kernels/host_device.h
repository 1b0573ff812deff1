// For functions that kernels of both processors call: nvcc compiles them for both, the CPU's compiler puts them into
// the function that calls them, whatever instruction set that one is for.

#pragma once

#if defined(__CUDACC__)
#define FASTVIZ_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTVIZ_HOST_DEVICE inline __attribute__((always_inline))
#endif
