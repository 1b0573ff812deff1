// The instructions that C++ has no words for, and the launch of a kernel.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#include "../kernels.h"
#include "index.cuh"

namespace fastviz {

/// Whether the card multiplies float16 and bfloat16 matrices with float32 sums (sm_80 and later).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool matrix_units = false;
#else
constexpr bool matrix_units = true;
#endif

/// What is read and written in one access of so many bytes.
template <int BYTES>
using Word =
    std::conditional_t<BYTES == 16, uint4,
                       std::conditional_t<BYTES == 8, uint2, std::conditional_t<BYTES == 4, uint32_t, uint16_t>>>;

/// From memory to registers, in accesses as wide as the size allows; the address is a multiple of that. By way of a
/// word: the compiler splits a copy between the caller's types into one access a value.
template <int BYTES>
__device__ __forceinline__ void load_bytes(void* registers, const void* address) {
  constexpr int size = BYTES < 16 ? BYTES : 16;
#pragma unroll
  for (int i = 0; i < BYTES; i += size) {
    const Word<size> word = *reinterpret_cast<const Word<size>*>(static_cast<const char*>(address) + i);
    memcpy(static_cast<char*>(registers) + i, &word, size);
  }
}

/// To global memory. The wide stores are written out: the compiler splits a copy of registers into a store a value.
template <int BYTES>
__device__ __forceinline__ void store_bytes(void* address, const void* registers) {
  constexpr int size = BYTES < 16 ? BYTES : 16;
#pragma unroll
  for (int i = 0; i < BYTES; i += size) {
    Word<size> word;
    memcpy(&word, static_cast<const char*>(registers) + i, size);
    char* target = static_cast<char*>(address) + i;
    if constexpr (size == 16) {
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(word.x), "r"(word.y), "r"(word.z),
                   "r"(word.w)
                   : "memory");
    } else if constexpr (size == 8) {
      asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(target), "r"(word.x), "r"(word.y) : "memory");
    } else {
      *reinterpret_cast<Word<size>*>(target) = word;
    }
  }
}

/// Promises to the compiler, which chooses the instruction by them.
__device__ __forceinline__ void assume_global(const void* address) { __builtin_assume(__isGlobal(address)); }
__device__ __forceinline__ void assume_shared(const void* address) { __builtin_assume(__isShared(address)); }

/// The block's shared memory whose size the launch gives.
__device__ __forceinline__ unsigned char* launched_shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Starts a copy of 4, 8 or 16 bytes to shared memory; zeros where it is not wanted, and then nothing is read.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool wanted) {
#if __CUDA_ARCH__ >= 800
  const uint32_t size = wanted ? BYTES : 0;
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(size)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(BYTES),
                 "r"(size)
                 : "memory");
  }
#else
  if (wanted) {
    Word<BYTES> word;
    load_bytes<BYTES>(&word, global);
    *static_cast<Word<BYTES>*>(shared) = word;
  } else {
    memset(shared, 0, BYTES);
  }
#endif
}

/// Ends a group of copies.
__device__ __forceinline__ void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most the last `GROUPS` groups of this thread's copies are under way.
template <int GROUPS>
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

/// Four 8 x 8 matrices of 16-bit values from shared memory: lane 8 m + r gives the address of row r of matrix m;
/// register m of a lane receives values (lane / 4, 2 (lane % 4)) and the next one of matrix m, or of its transpose.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&registers)[4], const void* row) {
  if constexpr (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

/// sums (16 x 8) += a (16 x 16) b (16 x 8), spread over the warp as mma.m16n8k16 has it; T is float16 or bfloat16.
template <typename T>
__device__ __forceinline__ void multiply_add(float& sum0, float& sum1, float& sum2, float& sum3, const uint32_t (&a)[4],
                                             uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum0), "+f"(sum1), "+f"(sum2), "+f"(sum3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum0), "+f"(sum1), "+f"(sum2), "+f"(sum3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

/// Square root and its reciprocal, from the special function unit: off by two units in the last place at most. Numbers
/// below the smallest normal one count as 0; the reciprocal of 0 is infinity.
__device__ __forceinline__ float fast_root(float value) {
  asm("sqrt.approx.ftz.f32 %0, %0;" : "+f"(value));
  return value;
}
__device__ __forceinline__ double fast_root(double value) { return sqrt(value); }
__device__ __forceinline__ float fast_reciprocal_root(float value) {
  asm("rsqrt.approx.ftz.f32 %0, %0;" : "+f"(value));
  return value;
}
__device__ __forceinline__ double fast_reciprocal_root(double value) { return rsqrt(value); }

/// Lets a kernel have more shared memory than every kernel may. Asked of the driver once for each kernel and device.
inline void allow_shared_memory(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return;  // the launch fails for the same reason, and is checked
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)) ==
      cudaSuccess) {
    most = bytes;
  }
}

/// Launches a kernel; work of more blocks than a grid holds goes through the kernel's loop. The caller checks
/// cudaGetLastError.
template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int64_t blocks, int threads, size_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024) allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
  kernel<<<static_cast<unsigned>(smaller(blocks, max_blocks)), static_cast<unsigned>(threads), shared_bytes, stream>>>(
      arguments...);
}

}  // namespace fastviz
