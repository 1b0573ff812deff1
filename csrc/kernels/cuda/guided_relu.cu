#include "common.cuh"

namespace fastviz {
namespace {

/// A warp's tile: 4 rounds of 32 vectors of 16 bytes, so that a thread has 4 accesses in flight. A lane's vector gives
/// `width` bits of the mask; 32 / width neighbouring lanes make a word of 32 bits, a round makes `width` words.
constexpr int rounds = 4;
template <typename T>
constexpr int tile_values = rounds * 32 * width<T>;
template <typename T>
constexpr int lanes_a_word = 32 / width<T>;
constexpr int warps_a_block = 8;

template <typename T>
struct ReluTask {
  const T* input;
  T* output;
  uint8_t* mask;
  int64_t count;
  int64_t tiles;
  bool bounded;
  bool open_below;
  T upper;
};

/// Rectifies the value, and gives its bit of the mask.
template <typename T>
__device__ __forceinline__ bool rectify(const ReluTask<T>& task, T& value) {
  const bool passes = !(widen(value) <= 0);
  const bool beyond = task.bounded && widen(value) >= widen(task.upper);
  value = beyond ? task.upper : (passes ? value : narrow<T>(0));
  return (passes || task.open_below) && !beyond;
}

/// One byte of the mask, and its 8 values.
template <typename T>
__device__ __forceinline__ void relu_byte(const ReluTask<T>& task, int64_t byte) {
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t value = byte * 8 + i;
    if (value >= task.count) continue;
    T x = task.input[value];
    bits |= static_cast<uint32_t>(rectify(task, x)) << i;
    task.output[value] = x;
  }
  if (task.mask) task.mask[byte] = static_cast<uint8_t>(bits);
}

/// Writes max(x, 0), or the bound, and the mask. One warp = one tile at a time, one thread = 4 vectors of 16 bytes; no
/// shared memory.
///   1. Read 4 vectors. (The last tile, if it is not a whole one, goes byte of the mask by byte.)
///   2. Write the rectified values; gather each round's bits in words by shuffles among the lanes of a word.
///   3. The lanes of a word write the word of one round each: 4 x 16 bytes of the mask in one store.
template <typename T>
__global__ void __launch_bounds__(256) guided_relu_vectors_kernel(const ReluTask<T> task) {
  constexpr int N = width<T>;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int in_word = lane % lanes_a_word<T>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * warps_a_block;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * warps_a_block + (threadIdx.x >> 5); tile < task.tiles;
       tile += stride) {
    if ((tile + 1) * tile_values<T> > task.count) {
      const int64_t first = tile * (tile_values<T> / 8);
      for (int64_t byte = first + lane; byte * 8 < task.count; byte += 32) relu_byte(task, byte);
      continue;
    }
    const int64_t first = tile * tile_values<T> + lane * N;
    Vector<T, N> vectors[rounds];
#pragma unroll
    for (int round = 0; round < rounds; ++round) vectors[round] = load<T, N>(task.input + first + round * 32 * N);

    uint32_t word = 0;
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      uint32_t bits = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        bits |= static_cast<uint32_t>(rectify(task, vectors[round].value[i])) << i;
      }
      store(task.output + first + round * 32 * N, vectors[round]);
      bits <<= in_word * N;
#pragma unroll
      for (int distance = lanes_a_word<T> / 2; distance > 0; distance /= 2) {
        bits |= __shfl_xor_sync(0xffffffffu, bits, distance);
      }
      if (in_word == round) word = bits;
    }
    if (task.mask && in_word < rounds) {
      const int64_t byte = tile * (tile_values<T> / 8) + (in_word * N + lane / lanes_a_word<T>)*4;
      *reinterpret_cast<uint32_t*>(task.mask + byte) = word;
    }
  }
}

/// The same for addresses that are no multiple of 16 bytes: one thread = 8 values, one byte of the mask.
template <typename T>
__global__ void __launch_bounds__(256) guided_relu_values_kernel(const ReluTask<T> task) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
#pragma unroll 1
  for (int64_t byte = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; byte * 8 < task.count;
       byte += stride) {
    relu_byte(task, byte);
  }
}

template <typename T>
struct ReluBackwardTask {
  const T* grad;
  const uint8_t* mask;
  T* output;
  int64_t count;
  int64_t tiles;
  bool use_mask;
  bool positive_only;
};

template <typename T>
__device__ __forceinline__ T routed(const ReluBackwardTask<T>& task, T grad, bool bit) {
  const bool passes = bit && !(task.positive_only && widen(grad) <= 0);
  return passes ? grad : narrow<T>(0);
}

template <typename T>
__device__ __forceinline__ void relu_backward_value(const ReluBackwardTask<T>& task, int64_t value) {
  const bool bit = !task.use_mask || (task.mask[value / 8] >> (value % 8) & 1) != 0;
  task.output[value] = routed(task, task.grad[value], bit);
}

/// Writes the gradient that the rule lets pass. One warp = one tile at a time, one thread = 4 vectors of 16 bytes; no
/// shared memory.
///   1. Read 4 vectors and the words of the mask that hold their bits. (The last tile, if it is not a whole one, goes
///      value by value.)
///   2. Keep what passes. Write.
template <typename T>
__global__ void __launch_bounds__(256) guided_relu_backward_vectors_kernel(const ReluBackwardTask<T> task) {
  constexpr int N = width<T>;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * warps_a_block;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * warps_a_block + (threadIdx.x >> 5); tile < task.tiles;
       tile += stride) {
    if ((tile + 1) * tile_values<T> > task.count) {
      const int64_t first = tile * tile_values<T> + lane;
#pragma unroll 1
      for (int64_t value = first; value < task.count; value += 32) relu_backward_value(task, value);
      continue;
    }
    const int64_t first = tile * tile_values<T> + lane * N;
    Vector<T, N> vectors[rounds];
    uint32_t words[rounds];
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      vectors[round] = load<T, N>(task.grad + first + round * 32 * N);
      const int64_t byte = tile * (tile_values<T> / 8) + (round * N + lane / lanes_a_word<T>)*4;
      words[round] = task.use_mask ? *reinterpret_cast<const uint32_t*>(task.mask + byte) : 0xffffffffu;
    }
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const uint32_t bits = words[round] >> (lane % lanes_a_word<T> * N);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        vectors[round].value[i] = routed(task, vectors[round].value[i], (bits >> i & 1) != 0);
      }
      store(task.output + first + round * 32 * N, vectors[round]);
    }
  }
}

/// The same for addresses that are no multiple of 16 bytes: one thread = one value.
template <typename T>
__global__ void __launch_bounds__(256) guided_relu_backward_values_kernel(const ReluBackwardTask<T> task) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
#pragma unroll 1
  for (int64_t value = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; value < task.count;
       value += stride) {
    relu_backward_value(task, value);
  }
}

bool word_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 4 == 0; }

template <typename T>
void guided_relu(Stream stream, const GuidedRelu& a) {
  const bool open_below = a.bounded && a.rule == ReluRule::deconvnet;
  const T upper = narrow<T>(static_cast<Sum<T>>(a.upper));
  const ReluTask<T> task{static_cast<const T*>(a.input),
                         static_cast<T*>(a.output),
                         a.mask,
                         a.count,
                         ceil_div(a.count, tile_values<T>),
                         a.bounded,
                         open_below,
                         upper};
  if (aligned(a.input) && aligned(a.output) && word_aligned(a.mask)) {
    launch(guided_relu_vectors_kernel<T>, ceil_div(task.tiles, warps_a_block), 256, 0, stream, task);
  } else {
    launch(guided_relu_values_kernel<T>, ceil_div(a.count, 8 * 256), 256, 0, stream, task);
  }
}

template <typename T>
void guided_relu_backward(Stream stream, const GuidedReluBackward& a) {
  const bool use_mask = a.mask != nullptr;
  const ReluBackwardTask<T> task{static_cast<const T*>(a.grad),     a.mask,   static_cast<T*>(a.output), a.count,
                                 ceil_div(a.count, tile_values<T>), use_mask, a.rule != ReluRule::plain};
  if (aligned(a.grad) && aligned(a.output) && (!use_mask || word_aligned(a.mask))) {
    launch(guided_relu_backward_vectors_kernel<T>, ceil_div(task.tiles, warps_a_block), 256, 0, stream, task);
  } else {
    launch(guided_relu_backward_values_kernel<T>, ceil_div(a.count, 256), 256, 0, stream, task);
  }
}

}  // namespace

void guided_relu_cuda(Stream stream, const GuidedRelu& arguments) {
  if (arguments.count == 0) return;
  with_dtype(arguments.dtype, [&](auto type) { guided_relu<decltype(type)>(stream, arguments); });
}

void guided_relu_backward_cuda(Stream stream, const GuidedReluBackward& arguments) {
  if (arguments.count == 0) return;
  with_dtype(arguments.dtype, [&](auto type) { guided_relu_backward<decltype(type)>(stream, arguments); });
}

}  // namespace fastviz
