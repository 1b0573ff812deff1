#include "../variation_terms.h"
#include "common.cuh"

namespace fastviz {
namespace {

/// Rows of a strip. The rows above and below are read too: from the cache, as neighbouring strips own them.
constexpr int strip_rows = 4;
constexpr int variation_threads = 256;

/// Square roots of the special function unit; docs/kernels.md has their error.
struct FastRoots {
  template <typename S>
  static __device__ __forceinline__ S root(S value) {
    return fast_root(value);
  }
  template <typename S>
  static __device__ __forceinline__ S reciprocal_root(S value, S) {
    return fast_reciprocal_root(value);
  }
};

template <Terms TERMS, typename S>
__device__ __forceinline__ VariationTerm<S> term_of(const VariationWeights<S>& weights, S v, S h) {
  return term_of<TERMS, FastRoots>(weights, v, h, v * v + h * h);
}

template <typename T>
struct VariationTask {
  const T* input;
  T* gradient;  // null: not wanted
  const Sum<T>* factor;  // [images], or null: 1
  Sum<T>* partial;  // [blocks]; null: not wanted
  VariationWeights<Sum<T>> weights;
  bool crop;
  int64_t rows, row, pixel;  // rows in a plane, values in a row, values in a pixel
  int64_t picture;
  int64_t strips_a_picture;
  FastDivide vectors;  // in a row
  FastDivide strips;  // in a plane
  FastDivide picture_blocks;  // blocks of a picture
  int64_t blocks;
};

/// One row of a thread's strip: its values, and the values a pixel to the left and to the right. Where a pixel is one
/// value (ADJACENT) all but one of these neighbours are the thread's own.
template <typename T, int N, bool ADJACENT>
struct VariationRow {
  using S = Sum<T>;
  static constexpr int neighbours = ADJACENT ? 1 : N;
  S own[N];
  S left[neighbours];
  S right[neighbours];

  /// `left_step` and `right_step` lead to the first value of either neighbour.
  __device__ __forceinline__ void read(const T* values, int64_t left_step, int64_t right_step) {
    const Vector<T, N> vector = load<T, N>(values);
    const Vector<T, neighbours> before = load<T, neighbours>(values + left_step);
    const Vector<T, neighbours> after = load<T, neighbours>(values + right_step);
#pragma unroll
    for (int i = 0; i < N; ++i) own[i] = widen(vector.value[i]);
#pragma unroll
    for (int i = 0; i < neighbours; ++i) {
      left[i] = widen(before.value[i]);
      right[i] = widen(after.value[i]);
    }
  }
  __device__ __forceinline__ S right_of(int i) const {
    if constexpr (!ADJACENT) return right[i];
    return i + 1 < N ? own[i + 1 < N ? i + 1 : i] : right[0];
  }
};

/// Writes the gradient and each block's sum of terms, as far as they are wanted. One block = 256 strips of one picture,
/// one thread = one strip of 4 rows x N values; shared memory: the sums of the warps.
///   1. Read 6 rows: the strip, the row above (its terms reach down into the strip) and the row below. Past the border
///      a pixel is its own neighbour: a missing difference is 0.
///   2. Go down the rows: terms, derivatives, and the gradient
///      ((above by_vertical - own by_vertical) + (left by_horizontal - own by_horizontal)) times the factor.
///      With `crop` the last row and the last column have no terms.
///   3. Add the block's terms.
template <typename T, int N, bool ADJACENT, Terms TERMS>
__global__ void __launch_bounds__(variation_threads) total_variation_kernel(const VariationTask<T> task) {
  using S = Sum<T>;
  using Row = VariationRow<T, N, ADJACENT>;
  for (int64_t block = blockIdx.x; block < task.blocks; block += gridDim.x) {
    const int64_t image = task.picture_blocks.divide(block);
    const int64_t strip = task.picture_blocks.remainder(block, image) * variation_threads + threadIdx.x;
    S sum = 0;
    if (strip < task.strips_a_picture) {
      const int64_t line = task.vectors.divide(strip);
      const int64_t column = task.vectors.remainder(strip, line) * N;
      const int64_t plane = task.strips.divide(line);
      const int64_t top = task.strips.remainder(line, plane) * strip_rows;
      const int64_t offset = image * task.picture + (plane * task.rows + top) * task.row + column;
      const bool with_gradient = task.gradient != nullptr;
      const bool has_left = column >= task.pixel;
      const bool has_right = column + (ADJACENT ? N : task.pixel) < task.row;
      const bool no_last = task.crop && !has_right;  // the terms of the strip's last pixel column are not wanted
      const int64_t left_step = has_left ? -task.pixel : 0;
      const int64_t right_step = ADJACENT ? (has_right ? N : N - 1) : (has_right ? task.pixel : 0);

      Row rows[strip_rows + 2] = {};
#pragma unroll
      for (int r = 0; r < strip_rows + 2; ++r) {
        if (r == 0 && !with_gradient) continue;
        const int64_t y = clamp(top + r - 1, 0, task.rows - 1);
        rows[r].read(task.input + offset + (y - top) * task.row, left_step, right_step);
      }

      const auto term = [&](int r, int i) {
        S v = rows[r + 1].own[i] - rows[r].own[i];
        S h = rows[r].right_of(i) - rows[r].own[i];
        if (no_last && (!ADJACENT || i + 1 == N)) v = h = 0;
        return term_of<TERMS>(task.weights, v, h);
      };
      S above[N] = {};  // derivatives of the terms above, by their vertical differences
      if (with_gradient) {
#pragma unroll
        for (int i = 0; i < N; ++i) above[i] = term(0, i).by_vertical;
      }
      const S factor = task.factor ? task.factor[image] : S(1);
#pragma unroll
      for (int r = 1; r <= strip_rows; ++r) {
        const int64_t y = top + r - 1;
        if (y >= task.rows) continue;
        S by_vertical[N] = {}, by_horizontal[N] = {}, from_left[N] = {};
        if (!task.crop || y + 1 < task.rows) {
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const VariationTerm<S> own = term(r, i);
            sum += own.value;
            by_vertical[i] = own.by_vertical;
            by_horizontal[i] = own.by_horizontal;
          }
#pragma unroll
          for (int i = 0; i < N; ++i) {
            if (ADJACENT && i > 0) {
              from_left[i] = by_horizontal[i > 0 ? i - 1 : 0];
            } else {
              const S v = rows[r + 1].left[i] - rows[r].left[i];
              from_left[i] = term_of<TERMS>(task.weights, v, rows[r].own[i] - rows[r].left[i]).by_horizontal;
            }
          }
        }
        if (!with_gradient) continue;
        Vector<T, N> gradient;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          gradient.value[i] = narrow<T>(factor * ((above[i] - by_vertical[i]) + (from_left[i] - by_horizontal[i])));
          above[i] = by_vertical[i];
        }
        store(task.gradient + offset + (r - 1) * task.row, gradient);
      }
    }

    if (task.partial) {
      sum = block_sum(sum);
      if (threadIdx.x == 0) task.partial[block] = sum;
      __syncthreads();
    }
  }
}

/// Values a thread takes from a row where its neighbours are whole vectors too: half a vector of 16-bit values, or the
/// three of them would not fit in registers.
template <typename T>
constexpr int wide_pixel = width<T> < 4 ? width<T> : 4;

/// Values in a vector: 16 bytes where rows allow, else one.
template <typename T>
int vector_of(const TotalVariation& a) {
  if (!aligned(a.input) || !aligned(a.gradient)) return 1;
  if (a.layout.pixel == 1) return a.layout.row() % width<T> == 0 ? width<T> : 1;
  return a.layout.pixel % wide_pixel<T> == 0 ? wide_pixel<T> : 1;
}

/// Blocks for one picture, for whichever vector.
int64_t blocks_of(const Layout& layout, int vector) {
  const int64_t strips = layout.planes * ceil_div(layout.rows, strip_rows) * (layout.row() / vector);
  return ceil_div(strips, variation_threads);
}

template <Terms TERMS, typename T>
void launch_variation(Stream stream, const VariationTask<T>& task, int vector) {
  if (vector == 1) {
    launch(total_variation_kernel<T, 1, false, TERMS>, task.blocks, variation_threads, 0, stream, task);
  } else if (task.pixel == 1) {
    launch(total_variation_kernel<T, width<T>, true, TERMS>, task.blocks, variation_threads, 0, stream, task);
  } else {
    launch(total_variation_kernel<T, wide_pixel<T>, false, TERMS>, task.blocks, variation_threads, 0, stream, task);
  }
}

template <typename T>
void total_variation(Stream stream, const TotalVariation& a) {
  using S = Sum<T>;
  const Layout& layout = a.layout;
  const int vector = vector_of<T>(a);
  const int64_t picture_blocks = blocks_of(layout, vector);
  S* partial = static_cast<S*>(a.workspace);
  if (picture_blocks > 0) {
    VariationTask<T> task{};
    task.input = static_cast<const T*>(a.input);
    task.gradient = static_cast<T*>(a.gradient);
    task.factor = static_cast<const S*>(a.factor);
    task.partial = a.value ? partial : nullptr;
    const bool isotropic = a.norm == VariationNorm::isotropic;
    task.weights = {static_cast<S>(a.vertical_weight),
                    static_cast<S>(isotropic ? a.vertical_weight : a.horizontal_weight), static_cast<S>(a.beta)};
    task.crop = a.crop;
    task.rows = layout.rows;
    task.row = layout.row();
    task.pixel = layout.pixel;
    task.picture = layout.picture();
    task.vectors = FastDivide(layout.row() / vector);
    task.strips = FastDivide(ceil_div(layout.rows, strip_rows));
    task.strips_a_picture = layout.planes * task.strips.divisor() * task.vectors.divisor();
    task.picture_blocks = FastDivide(picture_blocks);
    task.blocks = a.images * picture_blocks;
    with_terms(terms_of(a.norm, a.beta), [&](auto terms) {
      // With beta = 2 the isotropic norm is that of squares, its weights being the same.
      constexpr Terms TERMS = decltype(terms)::value == Terms::beta_two ? Terms::square : decltype(terms)::value;
      launch_variation<TERMS>(stream, task, vector);
    });
  }
  if (!a.value) return;
  launch(sum_rows_kernel<S>, a.images, 256, 0, stream, static_cast<const S*>(partial), picture_blocks, a.images,
         static_cast<S*>(a.value));
}

}  // namespace

size_t total_variation_cuda_workspace(const TotalVariation& arguments) {
  if (!arguments.value) return 0;
  // A value at a time takes the most blocks; which vector it will be depends on addresses.
  const int64_t blocks = arguments.images * blocks_of(arguments.layout, 1);
  return static_cast<size_t>(blocks) * (arguments.dtype == Dtype::float64 ? sizeof(double) : sizeof(float));
}

void total_variation_cuda(Stream stream, const TotalVariation& arguments) {
  if (arguments.images == 0) return;
  with_dtype(arguments.dtype, [&](auto type) { total_variation<decltype(type)>(stream, arguments); });
}

}  // namespace fastviz
