// Functions compiled for several instruction sets, of which one is chosen at run time. The compiler's own target_clones
// would leave the choice to the loader, which knows nothing of FASTVIZ_CPU.

#pragma once

#include <type_traits>

#include "../kernels.h"

#define FASTVIZ_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__)
#define FASTVIZ_X86
#endif

namespace fastviz {

/// Bytes of a vector register.
template <Instructions set>
constexpr int vector_bytes = set == Instructions::avx512 ? 64
                             : set == Instructions::avx2 ? 32
                                                         : 16;

/// Target<set>::run<function> is `function`, which must be FASTVIZ_INLINE, compiled for an instruction set.
template <Instructions set>
struct Target;

template <>
struct Target<Instructions::baseline> {
  template <auto function, typename... Arguments>
  static auto run(Arguments... arguments) {
    return function(arguments...);
  }
};

#ifdef FASTVIZ_X86
template <>
struct Target<Instructions::avx2> {
  template <auto function, typename... Arguments>
  __attribute__((target("arch=x86-64-v3"))) static auto run(Arguments... arguments) {
    return function(arguments...);
  }
};

template <>
struct Target<Instructions::avx512> {
  template <auto function, typename... Arguments>
  __attribute__((target("arch=x86-64-v4"))) static auto run(Arguments... arguments) {
    return function(arguments...);
  }
};
#endif

/// Calls function with the instruction set in use as a std::integral_constant, and returns what it returns.
template <typename Function>
auto with_instructions(const Function& function) {
#ifdef FASTVIZ_X86
  const Instructions used = instructions();
  if (used == Instructions::avx512) return function(std::integral_constant<Instructions, Instructions::avx512>{});
  if (used == Instructions::avx2) return function(std::integral_constant<Instructions, Instructions::avx2>{});
#endif
  return function(std::integral_constant<Instructions, Instructions::baseline>{});
}

/// Calls function, which must be FASTVIZ_INLINE, as compiled for the instruction set in use.
template <auto function, typename... Arguments>
auto versioned(Arguments... arguments) {
  return with_instructions(
      [&](auto set) { return Target<decltype(set)::value>::template run<function>(arguments...); });
}

}  // namespace fastviz
