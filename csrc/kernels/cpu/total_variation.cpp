#include <cmath>
#include <utility>
#include <vector>

#include "../variation_terms.h"
#include "common.h"

namespace fastviz {
namespace {

/// Rows that one task handles; a task's sum is one partial value, and partial values are added in order.
constexpr int64_t block_rows = 16;
/// Values whose terms are added in the working type before they go into a double.
constexpr int64_t chunk = 1024;

int64_t blocks(const Layout& layout) { return (layout.rows + block_rows - 1) / block_rows; }

struct Roots {
  template <typename S>
  static FASTVIZ_INLINE S root(S value) {
    return std::sqrt(value);
  }
  template <typename S>
  static FASTVIZ_INLINE S reciprocal_root(S, S root) {
    return 1 / root;
  }
};

/// Terms of `count` values of a row, and their derivatives by the horizontal and the vertical difference.
template <typename S, Terms kind, bool with_gradient>
FASTVIZ_INLINE S terms(const S* x, const S* right, const S* below, VariationWeights<S> weights, S* by_horizontal,
                       S* by_vertical, int64_t count) {
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const S h = right[i] - x[i];
    const S v = below[i] - x[i];
    const VariationTerm<S> term = term_of<kind, Roots>(weights, v, h, h * h + v * v);
    sum += term.value;
    if constexpr (with_gradient) {
      by_horizontal[i] = term.by_horizontal;
      by_vertical[i] = term.by_vertical;
    }
  }
  return sum;
}

/// A value is in its own term twice with a minus sign, and in its left and upper neighbour's with a plus sign.
template <typename T>
FASTVIZ_INLINE void write_gradient(const Sum<T>* by_horizontal, const Sum<T>* by_horizontal_left,
                                   const Sum<T>* by_vertical, const Sum<T>* by_vertical_above, Sum<T> factor,
                                   T* gradient, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Sum<T> sum = by_horizontal_left[i] - by_horizontal[i] + by_vertical_above[i] - by_vertical[i];
    gradient[i] = narrow<T>(factor * sum);
  }
}

template <typename T>
FASTVIZ_INLINE void widen_row(const T* values, Sum<T>* wide, int64_t count) {
  for (int64_t i = 0; i < count; ++i) wide[i] = widen(values[i]);
}

/// A row in the working type: the row itself, or a widened copy in `buffer`.
template <typename T>
const Sum<T>* working_row(const T* values, std::vector<Sum<T>>& buffer, int64_t count) {
  if constexpr (std::is_same_v<T, Sum<T>>) {
    return values;
  } else {
    versioned<widen_row<T>>(values, buffer.data(), count);
    return buffer.data();
  }
}

/// Rows [first, last) of one plane. Returns the sum of their terms; writes their gradient where it is wanted.
template <typename T, Terms kind, bool with_gradient>
double plane_rows(const TotalVariation& a, const T* input, T* gradient, Sum<T> factor, int64_t first, int64_t last) {
  using S = Sum<T>;
  const int64_t row = a.layout.row();
  const int64_t pixel = a.layout.pixel;
  const int64_t inner = row - pixel;  // values that have a right neighbour
  const size_t size = static_cast<size_t>(row);
  constexpr bool widened = !std::is_same_v<T, S>;
  std::vector<S> here(widened ? size : 0), next(widened ? size : 0);
  // The derivative by the horizontal difference has one pixel of zeros before its first value: no left neighbour.
  std::vector<S> by_horizontal(with_gradient ? size + static_cast<size_t>(pixel) : 0);
  std::vector<S> by_vertical(with_gradient ? size : 0), by_vertical_above(with_gradient ? size : 0);
  const VariationWeights<S> weights = {static_cast<S>(a.vertical_weight), static_cast<S>(a.horizontal_weight),
                                       static_cast<S>(a.beta)};

  // The row above the first one gives the vertical derivative that reaches down into it; its terms are not counted.
  const int64_t start = with_gradient && first > 0 ? first - 1 : first;
  const S* x = working_row(input + start * row, here, row);
  double sum = 0;
  for (int64_t y = start; y < last; ++y) {
    const bool has_below = y + 1 < a.layout.rows;
    const S* below = has_below ? working_row(input + (y + 1) * row, next, row) : x;
    S* dh = with_gradient ? by_horizontal.data() + pixel : nullptr;
    S* dv = with_gradient ? by_vertical.data() : nullptr;
    double row_sum = 0;
    const auto add_terms = [&](const S* right, int64_t from, int64_t to) {
      for (int64_t i = from; i < to; i += chunk) {
        const int64_t count = to - i < chunk ? to - i : chunk;
        row_sum += versioned<terms<S, kind, with_gradient>>(x + i, right + (i - from), below + i, weights,
                                                            with_gradient ? dh + i : nullptr,
                                                            with_gradient ? dv + i : nullptr, count);
      }
    };
    const auto no_terms = [&](int64_t from) {
      if constexpr (with_gradient) {
        std::fill(dh + from, dh + row, S(0));
        std::fill(dv + from, dv + row, S(0));
      }
    };
    if (a.crop && !has_below) {
      no_terms(0);
    } else {
      add_terms(x + pixel, 0, inner);
      if (a.crop) {
        no_terms(inner);
      } else {
        add_terms(x + inner, inner, row);  // the last column: its right neighbour is itself
      }
    }
    if (y >= first) {
      sum += row_sum;
      if constexpr (with_gradient) {
        versioned<write_gradient<T>>(dh, by_horizontal.data(), dv, by_vertical_above.data(), factor, gradient + y * row,
                                     row);
      }
    }
    if constexpr (with_gradient) std::swap(by_vertical, by_vertical_above);
    if constexpr (widened) {
      std::swap(here, next);
      x = here.data();
    } else {
      x = below;
    }
  }
  return sum;
}

template <typename T>
FASTVIZ_INLINE void write_stencil(const T* x, const T* left, const T* right, const T* above, const T* below,
                                  Sum<T> horizontal_weight, Sum<T> vertical_weight, T* gradient, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Sum<T> value = widen(x[i]);
    const Sum<T> horizontal = (value - widen(left[i])) + (value - widen(right[i]));
    const Sum<T> vertical = (value - widen(above[i])) + (value - widen(below[i]));
    gradient[i] = narrow<T>(horizontal_weight * horizontal + vertical_weight * vertical);
  }
}

/// The gradient of a sum of squares, rows [first, last) of one plane: a value and its four neighbours, without terms in
/// between. A neighbour whose difference is not counted is the value itself.
template <typename T>
void quadratic_gradient_rows(const TotalVariation& a, const T* input, T* gradient, Sum<T> factor, int64_t first,
                             int64_t last) {
  using S = Sum<T>;
  const int64_t row = a.layout.row();
  const int64_t pixel = a.layout.pixel;
  const S vertical_weight = factor * 2 * static_cast<S>(a.vertical_weight);
  const double horizontal = a.norm == VariationNorm::isotropic ? a.vertical_weight : a.horizontal_weight;
  for (int64_t y = first; y < last; ++y) {
    const T* x = input + y * row;
    T* target = gradient + y * row;
    const bool has_below = y + 1 < a.layout.rows;
    const T* above = y > 0 ? x - row : x;
    const T* below = has_below ? x + row : x;
    const S horizontal_weight = a.crop && !has_below ? 0 : factor * 2 * static_cast<S>(horizontal);
    const auto write = [&](int64_t from, int64_t to, bool has_left, bool has_right) {
      const bool vertical = has_right || !a.crop;
      versioned<write_stencil<T>>(x + from, x + from - (has_left ? pixel : 0), x + from + (has_right ? pixel : 0),
                                  (vertical ? above : x) + from, (vertical ? below : x) + from, horizontal_weight,
                                  vertical_weight, target + from, to - from);
    };
    const int64_t inner = row - pixel;
    if (inner > 0) {
      write(0, pixel, false, true);
      write(pixel, inner, true, true);
    }
    write(inner, row, inner > 0, false);
  }
}

template <typename T, Terms kind, bool with_gradient>
void total_variation(const Parallel& parallel, const TotalVariation& a) {
  const int64_t per_picture = a.layout.planes * blocks(a.layout);
  double* partial = static_cast<double*>(a.workspace);
  const T* input = static_cast<const T*>(a.input);
  T* gradient = static_cast<T*>(a.gradient);
  const Sum<T>* factor = static_cast<const Sum<T>*>(a.factor);
  // A picture without pixels has no tasks with rows or no rows with values: its sum is 0 either way.
  const int64_t tasks = a.layout.row() > 0 ? a.images * per_picture : 0;
  std::fill_n(partial, a.images * per_picture, 0.0);
  parallel_for(parallel, tasks, block_rows * a.layout.row(), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t offset = unit / blocks(a.layout) * a.layout.plane();
      const int64_t first = unit % blocks(a.layout) * block_rows;
      const int64_t last = first + block_rows < a.layout.rows ? first + block_rows : a.layout.rows;
      if constexpr (with_gradient && (kind == Terms::square || kind == Terms::beta_two)) {
        if (!a.value) {
          const Sum<T> scale = factor ? factor[unit / per_picture] : 1;
          quadratic_gradient_rows(a, input + offset, gradient + offset, scale, first, last);
          continue;
        }
      }
      partial[unit] = plane_rows<T, kind, with_gradient>(a, input + offset, with_gradient ? gradient + offset : nullptr,
                                                         factor ? factor[unit / per_picture] : 1, first, last);
    }
  });
  if (!a.value) return;
  for (int64_t image = 0; image < a.images; ++image) {
    double sum = 0;
    for (int64_t i = 0; i < per_picture; ++i) sum += partial[image * per_picture + i];
    static_cast<Sum<T>*>(a.value)[image] = static_cast<Sum<T>>(sum);
  }
}

}  // namespace

size_t total_variation_cpu_workspace(const TotalVariation& arguments) {
  const int64_t tasks = arguments.images * arguments.layout.planes * blocks(arguments.layout);
  return static_cast<size_t>(tasks) * sizeof(double);
}

void total_variation_cpu(const Parallel& parallel, const TotalVariation& arguments) {
  with_dtype(arguments.dtype, [&](auto type) {
    with_terms(terms_of(arguments.norm, arguments.beta), [&](auto terms) {
      using T = decltype(type);
      constexpr Terms kind = decltype(terms)::value;
      if (arguments.gradient) {
        total_variation<T, kind, true>(parallel, arguments);
      } else {
        total_variation<T, kind, false>(parallel, arguments);
      }
    });
  });
}

}  // namespace fastviz
