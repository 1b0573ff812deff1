// What holds for element types on both processors, which have their own types of 16 bits.

#pragma once

#include <type_traits>

#include "kernels.h"

namespace fastviz {

/// The type that sums run in.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Calls function with a value of the element type.
template <typename Float16, typename Bfloat16, typename Function>
void with_element(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::float32:
      return function(float{});
    case Dtype::float64:
      return function(double{});
    case Dtype::float16:
      return function(Float16{});
    case Dtype::bfloat16:
      return function(Bfloat16{});
  }
}

}  // namespace fastviz
