// What the CPU kernels share: element types, threads, boxes.

#pragma once

#include <cstdint>
#include <cstring>

#include "../elements.h"
#include "instructions.h"

namespace fastviz {

#ifdef __aarch64__
// The same 16 bits. g++ has _Float16 in C++ since version 13 only; both widen to float before they compute.
using float16 = __fp16;
#else
using float16 = _Float16;
#endif

/// The upper half of a float32, rounded to nearest even.
struct bfloat16 {
  uint16_t bits;
};

template <typename T>
FASTVIZ_INLINE Sum<T> widen(T value) {
  return static_cast<Sum<T>>(value);
}

FASTVIZ_INLINE float widen(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename T>
FASTVIZ_INLINE T narrow(Sum<T> value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    // NaN must not round up to infinity or wrap around.
    const uint32_t upper = value != value ? 0x7fc0u : rounded >> 16;
    return bfloat16{static_cast<uint16_t>(upper)};
  } else {
    return static_cast<T>(value);
  }
}

/// std::copy for ranges that are mostly short: most rows of a window are shorter than a call of memcpy is worth.
template <typename T>
FASTVIZ_INLINE T* copy(const T* first, const T* last, T* target) {
  constexpr size_t step = 32, few = 4, worth_a_call = 16384;
  const size_t bytes = static_cast<size_t>(last - first) * sizeof(T);
  const char* from = reinterpret_cast<const char*>(first);
  char* to = reinterpret_cast<char*>(target);
  if (bytes > worth_a_call) {
    std::memcpy(to, from, bytes);
  } else if (bytes >= step) {
    for (size_t i = 0; i + step < bytes; i += step) std::memcpy(to + i, from + i, step);
    // The last step overlaps the one before it.
    std::memcpy(to + bytes - step, from + bytes - step, step);
  } else if (bytes >= few) {
    for (size_t i = 0; i + few < bytes; i += few) std::memcpy(to + i, from + i, few);
    std::memcpy(to + bytes - few, from + bytes - few, few);
  } else if (bytes > 0) {
    std::memcpy(to, from, sizeof(T));
  }
  return target + (last - first);
}

/// Calls function(begin, end) over parts of [0, count), `work` values each, small counts on the calling thread.
template <typename Function>
void parallel_for(const Parallel& parallel, int64_t count, int64_t work, const Function& function) {
  if (count <= 0) return;
  constexpr int64_t worth_a_thread = 1 << 15;
  const int64_t grain = work >= worth_a_thread ? 1 : worth_a_thread / (work > 0 ? work : 1);
  parallel.run(
      0, count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Function*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&function)));
}

/// Calls function with a value of the element type.
template <typename Function>
void with_dtype(Dtype dtype, const Function& function) {
  with_element<float16, bfloat16>(dtype, function);
}

/// [first, last) cut to [low, high); empty ranges come out with first == last.
struct Range {
  int64_t first;
  int64_t last;

  static Range cut(int64_t first, int64_t last, int64_t low, int64_t high) {
    first = first < low ? low : (first > high ? high : first);
    last = last < first ? first : (last > high ? high : last);
    return {first, last};
  }
  int64_t size() const { return last - first; }
  bool holds(int64_t value) const { return value >= first && value < last; }
};

/// The slices, rows and columns of a box that lie in the picture; an empty box has none of any.
struct Box {
  Range slices;
  Range rows;
  Range columns;

  Box(const int64_t* box, int64_t axes, const Layout& layout)
      : slices(along(box, axes, 0, layout.slices)),
        rows(along(box, axes, 1, layout.rows)),
        columns(along(box, axes, 2, layout.columns)) {
    if (slices.size() == 0 || rows.size() == 0 || columns.size() == 0) slices = rows = columns = {0, 0};
  }

 private:
  static Range along(const int64_t* box, int64_t axes, int64_t axis, int64_t size) {
    return Range::cut(of_axis(box, axes, axis, 0), of_axis(box + axes, axes, axis, size), 0, size);
  }
};

}  // namespace fastviz
