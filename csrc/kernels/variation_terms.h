// The terms of total variation and their derivatives: the formulas of both processors.

#pragma once

#include <cmath>
#include <type_traits>

#include "host_device.h"
#include "kernels.h"

namespace fastviz {

/// Kinds of terms: l2, l1, and isotropic powers, those of a fixed exponent without a call of pow.
enum class Terms { square, absolute, beta_one, beta_two, beta_two_and_half, beta_three, power };

inline Terms terms_of(VariationNorm norm, double beta) {
  if (norm == VariationNorm::l1) return Terms::absolute;
  if (norm == VariationNorm::l2) return Terms::square;
  if (beta == 1) return Terms::beta_one;
  if (beta == 2) return Terms::beta_two;
  if (beta == 2.5) return Terms::beta_two_and_half;
  if (beta == 3) return Terms::beta_three;
  return Terms::power;
}

/// Calls function with the kind of terms as a std::integral_constant.
template <typename Function>
void with_terms(Terms terms, const Function& function) {
  switch (terms) {
    case Terms::square:
      return function(std::integral_constant<Terms, Terms::square>{});
    case Terms::absolute:
      return function(std::integral_constant<Terms, Terms::absolute>{});
    case Terms::beta_one:
      return function(std::integral_constant<Terms, Terms::beta_one>{});
    case Terms::beta_two:
      return function(std::integral_constant<Terms, Terms::beta_two>{});
    case Terms::beta_two_and_half:
      return function(std::integral_constant<Terms, Terms::beta_two_and_half>{});
    case Terms::beta_three:
      return function(std::integral_constant<Terms, Terms::beta_three>{});
    case Terms::power:
      return function(std::integral_constant<Terms, Terms::power>{});
  }
}

template <typename S>
struct VariationWeights {
  S vertical, horizontal;
  S beta;
};

/// A pixel's term and its derivatives by the vertical and the horizontal difference.
template <typename S>
struct VariationTerm {
  S value, by_vertical, by_horizontal;
};

/// s^(beta / 2), and twice its derivative by s. `Roots` are the square root and its reciprocal, as the processor has
/// them.
template <Terms TERMS, typename Roots, typename S>
FASTVIZ_HOST_DEVICE void power(S s, S beta, S& value, S& slope) {
  if constexpr (TERMS == Terms::beta_one) {
    value = Roots::root(s);
    slope = value > 0 ? Roots::reciprocal_root(s, value) : S(0);
  } else if constexpr (TERMS == Terms::beta_two) {
    value = s;
    slope = 2;
  } else if constexpr (TERMS == Terms::beta_two_and_half) {
    const S root = Roots::root(Roots::root(s));
    value = s * root;
    slope = S(2.5) * root;
  } else if constexpr (TERMS == Terms::beta_three) {
    const S root = Roots::root(s);
    value = s * root;
    slope = 3 * root;
  } else {
    value = s > 0 ? std::pow(s, beta / 2) : S(0);
    slope = s > 0 ? beta * value / s : S(0);
  }
}

/// The term of the vertical and the horizontal difference v and h. `s` is v^2 + h^2, which isotropic terms use: the
/// caller adds it up, because with fused multiply-adds either order of that sum has its own last bit.
template <Terms TERMS, typename Roots, typename S>
FASTVIZ_HOST_DEVICE VariationTerm<S> term_of(const VariationWeights<S>& weights, S v, S h, S s) {
  const S vertical = weights.vertical, horizontal = weights.horizontal;
  if constexpr (TERMS == Terms::square) {
    return {vertical * v * v + horizontal * h * h, 2 * vertical * v, 2 * horizontal * h};
  } else if constexpr (TERMS == Terms::absolute) {
    return {vertical * std::abs(v) + horizontal * std::abs(h), v > 0 ? vertical : (v < 0 ? -vertical : S(0)),
            h > 0 ? horizontal : (h < 0 ? -horizontal : S(0))};
  } else {
    S value, slope;
    power<TERMS, Roots>(s, weights.beta, value, slope);
    slope *= vertical;
    return {vertical * value, slope * v, slope * h};
  }
}

}  // namespace fastviz
