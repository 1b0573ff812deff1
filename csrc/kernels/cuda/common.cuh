// What the CUDA kernels share: element types, 16-byte accesses, sums over a block, the instructions for asynchronous
// copies and for matrix units, launches. csrc/tests/emulation.h stands in for the CUDA part (FASTVIZ_EMULATION): the
// C++ test then runs the same kernels on the CPU.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../elements.h"
#include "index.cuh"

#if defined(FASTVIZ_EMULATION)
#include "../../tests/emulation.h"
#else
#include "instructions.cuh"
#endif

namespace fastviz {

using float16 = __half;
using bfloat16 = __nv_bfloat16;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(float16 value) { return __half2float(value); }
__device__ __forceinline__ float widen(bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__host__ __device__ __forceinline__ T narrow(Sum<T> value) {
  if constexpr (std::is_same_v<T, float16>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

/// Values in 16 bytes.
template <typename T>
constexpr int width = 16 / static_cast<int>(sizeof(T));

/// N values that are read and written in one access.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vector {
  T value[N];
};

/// A vector from global memory; the address is a multiple of its size, or of 16 bytes.
template <typename T, int N>
__device__ __forceinline__ Vector<T, N> load(const T* address) {
  assume_global(address);
  Vector<T, N> vector;
  load_bytes<sizeof(vector)>(&vector, address);
  return vector;
}

template <typename T, int N>
__device__ __forceinline__ Vector<T, N> load_shared(const T* address) {
  assume_shared(address);
  Vector<T, N> vector;
  load_bytes<sizeof(vector)>(&vector, address);
  return vector;
}

/// To global memory.
template <typename T, int N>
__device__ __forceinline__ void store(T* address, const Vector<T, N>& vector) {
  store_bytes<sizeof(vector)>(address, &vector);
}

template <typename T, int N>
__device__ __forceinline__ Vector<T, N> splat(T value) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) vector.value[i] = value;
  return vector;
}

inline bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

/// Calls function with a value of the element type.
template <typename Function>
void with_dtype(Dtype dtype, const Function& function) {
  with_element<float16, bfloat16>(dtype, function);
}

/// Threads of a block for `work` threads' worth of work: whole warps, 256 at most.
inline int threads_for(int64_t work) { return static_cast<int>(clamp(ceil_div(work, 32) * 32, 32, 256)); }

/// The sum of a value of each thread of the block, in an order that depends on the number of threads only; the first
/// thread gets it. All threads call it; the block may call it again after a barrier.
template <typename S>
__device__ S block_sum(S value) {
  __shared__ S sums[32];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int warps = (static_cast<int>(blockDim.x) + 31) >> 5;
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  if (warp == 0) {
    value = lane < warps ? sums[lane] : S(0);
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

/// Writes output[i] = the sum of `count` values from values[i * count] on. One block an output; a thread adds every
/// 256th value.
template <typename S>
__global__ void __launch_bounds__(256) sum_rows_kernel(const S* values, int64_t count, int64_t outputs, S* output) {
  for (int64_t row = blockIdx.x; row < outputs; row += gridDim.x) {
    S sum = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < count; i += 256) sum += values[row * count + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) output[row] = sum;
    __syncthreads();
  }
}

}  // namespace fastviz
