// Runs the CUDA kernels on the CPU, so that their indices, barriers and borders are tested where there is no GPU. It
// stands in for csrc/kernels/cuda/instructions.cuh: each CUDA thread is a fiber that runs until its next barrier, one
// block after the other. Where a barrier is missing, a thread reads what a thread after it was to write: run in both
// orders (`order`), one of the results is wrong. Slow: for small shapes only.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#include "../kernels/cuda/index.cuh"
#include "../kernels/kernels.h"
#include "numbers.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct EmulatedIndex {
  unsigned x = 0;
};
inline EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

// Element types, as far as the kernels use them.
struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half value) { return fastviz::test::float_of_half(value.bits); }
inline float __bfloat162float(__nv_bfloat16 value) { return fastviz::test::float_of_bfloat(value.bits); }
inline __half __float2half_rn(float value) { return {fastviz::test::half_of_float(value)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {fastviz::test::bfloat_of_float(value)}; }

namespace fastviz {
namespace emulation {

/// The order in which the threads of a block run between two barriers.
enum class Order { forward, backward };
inline Order order = Order::forward;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::abort();
}

/// One block: its fibers and their barriers.
class Block {
 public:
  static constexpr int max_threads = 1024;
  static constexpr size_t stack_bytes = 128 * 1024;

  static Block& current() {
    static Block block;
    return block;
  }

  void run(int threads, size_t shared_bytes, const std::function<void()>& body) {
    body_ = &body;
    // Never-written shared memory reads as NaN in every float type.
    shared_.assign(shared_bytes / 16 + 1, {~uint64_t{0}, ~uint64_t{0}});
    fibers_.resize(static_cast<size_t>(threads));
    for (Fiber& fiber : fibers_) {
      if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = stack_bytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Block::enter, 0);
      fiber.state = State::ready;
      fiber.groups.assign(1, {});
    }
    std::vector<int> sequence(fibers_.size());
    for (size_t i = 0; i < sequence.size(); ++i) sequence[i] = static_cast<int>(i);
    if (order == Order::backward) std::reverse(sequence.begin(), sequence.end());
    while (true) {
      bool ran = false;
      for (int thread : sequence) {
        if (fibers_[static_cast<size_t>(thread)].state != State::ready) continue;
        resume(thread);
        ran = true;
      }
      if (release()) continue;
      if (!ran) break;
    }
    for (const Fiber& fiber : fibers_) {
      if (fiber.state != State::done) fail("some threads wait at a barrier that others never reach");
    }
  }

  void block_barrier() { wait(State::at_block); }

  /// Publishes a value to the warp; every lane's value is there when it returns, until the next call but one.
  template <typename Value>
  const Value* exchange(const Value& value) {
    static_assert(sizeof(Value) <= sizeof(Slot));
    const int thread = static_cast<int>(threadIdx.x);
    Fiber& fiber = fibers_[static_cast<size_t>(thread)];
    fiber.parity = !fiber.parity;
    const bool parity = fiber.parity;
    Value* slots = reinterpret_cast<Value*>(slots_[parity][thread / 32]);
    slots[thread % 32] = value;
    wait(State::at_warp);
    return slots;
  }

  void* shared() { return shared_.data(); }

  /// A copy that arrives when its group is waited for, no sooner; from null come zeros.
  void start_copy(void* target, const void* source, size_t bytes) {
    running().groups.back().push_back({target, source, bytes});
  }
  void commit_copies() { running().groups.emplace_back(); }
  /// The last group is the one that is still open.
  void wait_for_copies(size_t groups_under_way) {
    std::vector<std::vector<Copy>>& groups = running().groups;
    while (groups.size() > groups_under_way + 1) {
      for (const Copy& copy : groups.front()) {
        if (copy.source) {
          std::memcpy(copy.target, copy.source, copy.bytes);
        } else {
          std::memset(copy.target, 0, copy.bytes);
        }
      }
      groups.erase(groups.begin());
    }
  }

 private:
  enum class State { ready, at_block, at_warp, done };
  struct alignas(16) Slot {
    char bytes[32];
  };
  struct alignas(16) Shared {
    uint64_t low, high;
  };
  struct Copy {
    void* target;
    const void* source;
    size_t bytes;
  };
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state = State::done;
    bool parity = false;
    std::vector<std::vector<Copy>> groups;
    void* fake_stack = nullptr;
  };

  Fiber& running() { return fibers_[static_cast<size_t>(running_)]; }

  static void enter() {
    Block& block = current();
    block.arrived(nullptr);
    (*block.body_)();
    block.leave(State::done);
  }

  void wait(State state) {
    Fiber& fiber = running();
    leave(state);
    arrived(fiber.fake_stack);
  }

  void resume(int thread) {
    running_ = thread;
    threadIdx.x = static_cast<unsigned>(thread);
    Fiber& fiber = fibers_[static_cast<size_t>(thread)];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fiber.stack.get(), stack_bytes);
#endif
    swapcontext(&scheduler_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
  }

  /// Back to the scheduler.
  void leave(State state) {
    Fiber& fiber = running();
    fiber.state = state;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::done ? nullptr : &fiber.fake_stack, scheduler_stack_,
                                   scheduler_stack_bytes_);
#endif
    swapcontext(&fiber.context, &scheduler_);
  }

  void arrived([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  /// Lets go of every barrier that all its threads have reached.
  bool release() {
    bool released = false;
    for (size_t warp = 0; warp < fibers_.size(); warp += 32) {
      released |= release(warp, std::min(warp + 32, fibers_.size()), State::at_warp);
    }
    return released || release(0, fibers_.size(), State::at_block);
  }

  bool release(size_t first, size_t last, State state) {
    bool any = false;
    for (size_t i = first; i < last; ++i) {
      if (fibers_[i].state == State::done) continue;
      if (fibers_[i].state != state) return false;
      any = true;
    }
    if (!any) return false;
    for (size_t i = first; i < last; ++i) {
      if (fibers_[i].state == state) fibers_[i].state = State::ready;
    }
    return true;
  }

  const std::function<void()>* body_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Shared> shared_;
  Slot slots_[2][max_threads / 32][32];
  ucontext_t scheduler_;
  int running_ = 0;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
};

}  // namespace emulation

#if defined(FASTVIZ_EMULATION_WITHOUT_MATRIX_UNITS)
constexpr bool matrix_units = false;
#else
constexpr bool matrix_units = true;
#endif

inline void check_address(const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(bytes % 16 == 0 ? 16 : bytes)) {
    emulation::fail("an access at an address that is no multiple of its size");
  }
}
template <int BYTES>
inline void load_bytes(void* registers, const void* address) {
  check_address(address, BYTES);
  std::memcpy(registers, address, BYTES);
}
template <int BYTES>
inline void store_bytes(void* address, const void* registers) {
  check_address(address, BYTES);
  std::memcpy(address, registers, BYTES);
}
inline void assume_global(const void*) {}
inline void assume_shared(const void*) {}

inline float fast_root(float value) { return std::sqrt(value); }
inline double fast_root(double value) { return std::sqrt(value); }
inline float fast_reciprocal_root(float value) { return 1 / std::sqrt(value); }
inline double fast_reciprocal_root(double value) { return 1 / std::sqrt(value); }

inline unsigned char* launched_shared_memory() {
  return static_cast<unsigned char*>(emulation::Block::current().shared());
}

template <int BYTES>
inline void copy_async(void* shared, const void* global, bool wanted) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
  check_address(shared, BYTES);
  if (wanted) check_address(global, BYTES);
  emulation::Block::current().start_copy(shared, wanted ? global : nullptr, BYTES);
}
inline void copy_async_commit() { emulation::Block::current().commit_copies(); }
template <int GROUPS>
inline void copy_async_wait() {
  emulation::Block::current().wait_for_copies(GROUPS);
}

template <bool TRANSPOSED>
inline void load_matrices(uint32_t (&registers)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) emulation::fail("a matrix row that is no multiple of 16 bytes");
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const void* const* rows = emulation::Block::current().exchange(row);
  for (int m = 0; m < 4; ++m) {
    const auto value = [&](int r, int c) {
      return static_cast<uint32_t>(static_cast<const uint16_t*>(rows[8 * m + r])[c]);
    };
    const int i = lane / 4, j = 2 * (lane % 4);
    registers[m] = TRANSPOSED ? value(j, i) | value(j + 1, i) << 16 : value(i, j) | value(i, j + 1) << 16;
  }
}

template <typename T>
inline void multiply_add(float& sum0, float& sum1, float& sum2, float& sum3, const uint32_t (&a)[4], uint32_t b0,
                         uint32_t b1) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Operands* lanes = emulation::Block::current().exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const auto number = [](uint32_t pair, int which) {
    const uint16_t bits = static_cast<uint16_t>(pair >> (16 * which));
    if constexpr (std::is_same_v<T, __half>) {
      return test::float_of_half(bits);
    } else {
      return test::float_of_bfloat(bits);
    }
  };
  float* sums[4] = {&sum0, &sum1, &sum2, &sum3};
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) {
      const float x = number(lanes[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k % 2);
      const float y = number(lanes[column * 4 + k % 8 / 2].b[k / 8], k % 2);
      *sums[i] += x * y;
    }
  }
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int64_t blocks, int threads, size_t shared_bytes, Stream, const Arguments&... arguments) {
  if (blocks <= 0 || threads <= 0 || threads > emulation::Block::max_threads) emulation::fail("a launch of no size");
  // A small grid, so that the kernels' loops over further blocks run too.
  gridDim.x = static_cast<unsigned>(smaller(blocks, 7));
  blockDim.x = static_cast<unsigned>(threads);
  const std::function<void()> body = [&] { kernel(arguments...); };
  for (unsigned block = 0; block < gridDim.x; ++block) {
    blockIdx.x = block;
    emulation::Block::current().run(threads, shared_bytes, body);
  }
}

}  // namespace fastviz

inline void __syncthreads() { fastviz::emulation::Block::current().block_barrier(); }

template <typename Value>
inline Value __shfl_xor_sync(unsigned, Value value, int distance) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return fastviz::emulation::Block::current().exchange(value)[lane ^ distance];
}
