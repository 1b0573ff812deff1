#include <algorithm>
#include <utility>
#include <vector>

#include "common.h"

// A Gram matrix as a matrix product that computes its upper triangle only:
//   1. The places are split into `chunks` parts; task (picture, chunk, group) adds up its part of the matrix.
//   2. A task walks over its places in steps of `depth`, copies the features of such a step into panels (a panel holds
//      `width` channels, place after place), and multiplies panels on and above the diagonal tile by tile.
//   3. The chunks' matrices are added in order, scaled and mirrored; for gram_loss, compared with the target.
// The split depends on the shape only, so the same input gives the same bits at any number of threads.

namespace fastviz {
namespace {

/// The tile of products that is kept in registers, and the vectors it is made of.
template <typename S, Instructions set>
struct Tile {
  using Sum = S;
  static constexpr int lanes = vector_bytes<set> / static_cast<int>(sizeof(S));
  static constexpr int count = set == Instructions::avx2 ? 3 : 2;  // vectors in a row
  static constexpr int width = lanes * count;  // channels in a panel, columns in a tile
  static constexpr int rows = set == Instructions::avx512 ? 8 : 4;
  typedef S Vector __attribute__((vector_size(vector_bytes<set>)));
  typedef S Unaligned __attribute__((vector_size(vector_bytes<set>), aligned(sizeof(S))));
  static_assert(width % rows == 0, "tiles should divide a panel");
};

/// output[r, c] (+)= sum over k of left[k, r] * right[k, c] for the first `count` vectors of columns; both panels hold
/// `width` channels a place.
template <typename T, int count>
FASTVIZ_INLINE void multiply(const typename T::Sum* left, const typename T::Sum* right, int64_t depth,
                             typename T::Sum* output, int64_t stride, bool first) {
  using Vector = typename T::Vector;
  using Unaligned = typename T::Unaligned;
  Vector sum[T::rows][count] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector columns[count];
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) {
      columns[v] = *reinterpret_cast<const Unaligned*>(right + k * T::width + v * T::lanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < T::rows; ++r) {
      const typename T::Sum row = left[k * T::width + r];
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v) sum[r][v] += row * columns[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < T::rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) {
      Unaligned* place = reinterpret_cast<Unaligned*>(output + r * stride + v * T::lanes);
      *place = first ? sum[r][v] : *place + sum[r][v];
    }
  }
}

/// The same for the first `columns` columns, rounded up to whole vectors.
template <typename T>
FASTVIZ_INLINE void multiply(const typename T::Sum* left, const typename T::Sum* right, int64_t depth,
                             typename T::Sum* output, int64_t stride, bool first, int64_t columns) {
  if (columns <= T::lanes) {
    multiply<T, 1>(left, right, depth, output, stride, first);
  } else if (columns <= 2 * T::lanes) {
    multiply<T, 2>(left, right, depth, output, stride, first);
  } else {
    multiply<T, T::count>(left, right, depth, output, stride, first);
  }
}

/// What the tasks of one call need to know. What is added to what is independent of the number of threads. At least one
/// image and channel.
struct Plan {
  int64_t panels;  // of `width` channels; the last one is filled up with zeros
  int64_t padded;  // channels, filled up
  int64_t chunks;
  int64_t steps;
  int64_t depth;  // places in a step
  int64_t groups;  // tasks that share a chunk, each with its own columns of panels

  Plan(const Gram& a, int64_t width, int64_t threads) {
    panels = (a.channels + width - 1) / width;
    padded = panels * width;
    // Enough tasks for many threads, few enough that the chunks' matrices stay small beside the features.
    constexpr int64_t wanted_tasks = 32;
    constexpr int64_t deepest = 128;  // two panels of it fit the first cache
    const int64_t places = std::max<int64_t>(a.places, 1);
    steps = (places + deepest - 1) / deepest;
    const int64_t wanted = std::max<int64_t>((wanted_tasks + a.images - 1) / a.images, 1);
    const int64_t affordable = std::max<int64_t>(2 * a.places / std::max<int64_t>(a.channels, 1), 1);
    chunks = std::min({steps, wanted, affordable});
    // Equal steps: one of a few places would load and store the matrix for little.
    depth = (places + steps - 1) / steps;
    // Each group packs most panels for itself, so that there are no more than there are threads for.
    const bool enough = a.images * chunks >= 4 * threads;
    groups = enough ? 1 : std::clamp<int64_t>(threads, 1, (panels + 1) / 2);
  }

  /// The first place of a chunk: whole steps, shared out as evenly as they can be.
  int64_t start(int64_t number) const { return steps * number / chunks * depth; }
};

/// The values of two vectors by turns: those of their lower halves, then those of their upper ones. By reference, as a
/// vector that is passed by value has no place in the baseline's calls.
template <typename Vector, size_t... lane>
FASTVIZ_INLINE void interleave(const Vector& a, const Vector& b, Vector& lower, Vector& upper,
                               std::index_sequence<lane...>) {
  constexpr size_t lanes = sizeof...(lane);
  lower = __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * lanes)...);
  upper = __builtin_shufflevector(a, b, (lanes / 2 + lane / 2 + lane % 2 * lanes)...);
}

/// A square of `lanes` channels and places into a panel. Each round moves the rows' values half the way: interleaving
/// row i with row i + lanes / 2, log2(lanes) times, transposes.
template <typename T, typename E>
FASTVIZ_INLINE void transpose(const E* source, int64_t channel_stride, typename T::Sum* packed) {
  constexpr std::make_index_sequence<T::lanes> lanes;
  typename T::Vector rows[T::lanes];
#pragma GCC unroll 16
  for (int i = 0; i < T::lanes; ++i) {
    const E* from = source + i * channel_stride;
    if constexpr (std::is_same_v<E, typename T::Sum>) {
      rows[i] = *reinterpret_cast<const typename T::Unaligned*>(from);
    } else {
      typename T::Sum wide[T::lanes];
      for (int j = 0; j < T::lanes; ++j) wide[j] = widen(from[j]);
      rows[i] = *reinterpret_cast<const typename T::Unaligned*>(wide);
    }
  }
#pragma GCC unroll 4
  for (int round = 1; round < T::lanes; round *= 2) {
    typename T::Vector next[T::lanes];
#pragma GCC unroll 8
    for (int i = 0; i < T::lanes / 2; ++i) {
      interleave(rows[i], rows[i + T::lanes / 2], next[2 * i], next[2 * i + 1], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < T::lanes; ++i) rows[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < T::lanes; ++i) {
    *reinterpret_cast<typename T::Unaligned*>(packed + i * T::width) = rows[i];
  }
}

/// Copies `count` places of one panel: packed[k, c] = features[channel c, place k], zero for channels that fill up.
template <typename T, typename E>
FASTVIZ_INLINE void pack(const Gram& a, const E* features, int64_t channel, int64_t place, int64_t count,
                         typename T::Sum* packed) {
  using S = typename T::Sum;
  const int64_t channels = std::min<int64_t>(T::width, a.channels - channel);
  const E* source = features + channel * a.channel_stride + place * a.place_stride;
  if (channels < T::width) std::fill(packed, packed + count * T::width, S(0));
  if (a.channel_stride == 1) {
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t c = 0; c < channels; ++c) packed[k * T::width + c] = widen(source[k * a.place_stride + c]);
    }
    return;
  }
  int64_t c = 0;
  for (; c + T::lanes <= channels; c += T::lanes) {
    int64_t k = 0;
    for (; k + T::lanes <= count; k += T::lanes) {
      transpose<T>(source + c * a.channel_stride + k, a.channel_stride, packed + k * T::width + c);
    }
    for (; k < count; ++k) {
      for (int64_t i = 0; i < T::lanes; ++i) {
        packed[k * T::width + c + i] = widen(source[(c + i) * a.channel_stride + k]);
      }
    }
  }
  for (; c < channels; ++c) {
    for (int64_t k = 0; k < count; ++k) packed[k * T::width + c] = widen(source[c * a.channel_stride + k]);
  }
}

/// The part of one chunk to the columns of panels of one group; matrix is [padded, padded], upper triangle.
template <typename T, typename E>
FASTVIZ_INLINE void accumulate(const Gram& a, const Plan& plan, const E* features, int64_t chunk, int64_t group,
                               typename T::Sum* packed, typename T::Sum* matrix) {
  const int64_t first = plan.start(chunk);
  const int64_t last = std::min(plan.start(chunk + 1), a.places);
  const int64_t panel = plan.depth * T::width;
  // A column of panels reaches from the top to the diagonal. Paired from both ends, columns are equal work.
  const auto mine = [&](int64_t column) { return std::min(column, plan.panels - 1 - column) % plan.groups == group; };
  int64_t needed = 0;
  for (int64_t column = 0; column < plan.panels; ++column) {
    if (mine(column)) needed = column + 1;
  }
  for (int64_t place = first; place < last || place == first; place += plan.depth) {
    const int64_t count = std::min(plan.depth, last - place);
    for (int64_t i = 0; i < needed; ++i) {
      pack<T>(a, features, i * T::width, place, count, packed + i * panel);
    }
    for (int64_t column = 0; column < needed; ++column) {
      if (!mine(column)) continue;
      // The last panel may hold few channels: vectors and rows of nothing but zeros are left out.
      const int64_t wide = std::min<int64_t>(T::width, a.channels - column * T::width);
      for (int64_t row = 0; row <= column; ++row) {
        const int64_t high = row < column ? T::width : wide;
        for (int64_t r = 0; r < high; r += T::rows) {
          multiply<T>(packed + row * panel + r, packed + column * panel, count,
                      matrix + (row * T::width + r) * plan.padded + column * T::width, plan.padded, place == first,
                      wide);
        }
      }
    }
  }
}

/// Side of the squares of the matrix that the last step handles, so that both triangles are written in whole lines.
constexpr int64_t square = 32;

int64_t squares(const Gram& a) { return (a.channels + square - 1) / square; }

/// Adds up the chunks of a square on or above the diagonal, scales it and takes the target off: `rows` rows of
/// `columns` values. Returns the loss.
template <typename E>
FASTVIZ_INLINE double finish_square(const Gram& a, const Plan& plan, const Sum<E>* matrix, const E* target, int64_t top,
                                    int64_t left, int64_t rows, int64_t columns, Sum<E>* values) {
  using S = Sum<E>;
  const S scale = static_cast<S>(a.scale);
  for (int64_t i = 0; i < rows; ++i) {
    const S* sums = matrix + (top + i) * plan.padded + left;
    S* row = values + i * square;
    for (int64_t j = 0; j < columns; ++j) row[j] = sums[j];
    for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
      sums += plan.padded * plan.padded;
      for (int64_t j = 0; j < columns; ++j) row[j] += sums[j];
    }
    for (int64_t j = 0; j < columns; ++j) row[j] *= scale;
  }
  double loss = 0;
  if (!target) return loss;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = top == left ? i : 0; j < columns; ++j) {
      const S value = values[i * square + j];
      const S upper = value - widen(target[(top + i) * a.channels + left + j]);
      const S lower = value - widen(target[(left + j) * a.channels + top + i]);
      loss += static_cast<double>(upper) * static_cast<double>(upper);
      if (top + i != left + j) loss += static_cast<double>(lower) * static_cast<double>(lower);
      values[i * square + j] = upper + lower;
    }
  }
  return loss;
}

/// Rows [top, top + square) from the diagonal on, and the columns that mirror them. Returns their loss.
template <typename E>
FASTVIZ_INLINE double finish_rows(const Gram& a, const Plan& plan, int64_t image, int64_t top, const Sum<E>* matrices) {
  using S = Sum<E>;
  const S* matrix = matrices + image * plan.chunks * plan.padded * plan.padded;
  E* output = static_cast<E*>(a.output) + image * a.channels * a.channels;
  const E* target = static_cast<const E*>(a.target);
  if (target && a.target_images > 1) target += image * a.channels * a.channels;
  const int64_t rows = std::min(square, a.channels - top);
  double loss = 0;
  for (int64_t left = top; left < a.channels; left += square) {
    const int64_t columns = std::min(square, a.channels - left);
    S values[square * square];
    loss += finish_square(a, plan, matrix, target, top, left, rows, columns, values);
    // Of the square on the diagonal the lower half is not computed: it is mirrored into itself.
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = top == left ? i : 0; j < columns; ++j) {
        output[(top + i) * a.channels + left + j] = narrow<E>(values[i * square + j]);
      }
    }
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t above = top == left ? j : rows;
      for (int64_t i = 0; i < above; ++i) output[(left + j) * a.channels + top + i] = narrow<E>(values[i * square + j]);
    }
  }
  return loss;
}

template <Instructions set, typename E>
void gram(const Parallel& parallel, const Gram& a) {
  using S = Sum<E>;
  using T = Tile<S, set>;
  if (a.channels == 0) {
    if (a.loss) std::fill_n(static_cast<S*>(a.loss), a.images, S(0));
    return;
  }
  const Plan plan(a, T::width, parallel.threads);
  const int64_t size = plan.padded * plan.padded;
  S* matrices = static_cast<S*>(a.workspace);
  const E* features = static_cast<const E*>(a.features);
  const int64_t per_image = plan.chunks * plan.groups;
  const int64_t work = a.channels * a.channels * a.places / per_image;
  parallel_for(parallel, a.images * per_image, work, [&](int64_t begin, int64_t end) {
    // Whole vectors in a line of the cache each.
    constexpr size_t line = 64;
    std::vector<S> room(static_cast<size_t>(plan.padded * plan.depth) + line / sizeof(S));
    S* packed = room.data() + (line - reinterpret_cast<uintptr_t>(room.data()) % line) / sizeof(S);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / per_image;
      // A group's chunks follow each other: split between threads, each gets groups of about equal work.
      const int64_t chunk = task % plan.chunks;
      Target<set>::template run<accumulate<T, E>>(a, plan, features + image * a.channels * a.places, chunk,
                                                  task % per_image / plan.chunks, packed,
                                                  matrices + (image * plan.chunks + chunk) * size);
    }
  });
  const int64_t tasks = a.images * squares(a);
  std::vector<double> loss(static_cast<size_t>(tasks));
  parallel_for(parallel, tasks, square * a.channels * plan.chunks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      loss[static_cast<size_t>(task)] =
          Target<set>::template run<finish_rows<E>>(a, plan, task / squares(a), task % squares(a) * square, matrices);
    }
  });
  if (!a.loss) return;
  for (int64_t image = 0; image < a.images; ++image) {
    double sum = 0;
    for (int64_t i = 0; i < squares(a); ++i) sum += loss[static_cast<size_t>(image * squares(a) + i)];
    static_cast<S*>(a.loss)[image] = static_cast<S>(sum);
  }
}

}  // namespace

size_t gram_cpu_workspace(const Gram& arguments) {
  size_t bytes = 0;
  if (arguments.images == 0 || arguments.channels == 0) return bytes;
  with_dtype(arguments.dtype, [&](auto type) {
    using E = decltype(type);
    with_instructions([&](auto set) {
      const Plan plan(arguments, Tile<Sum<E>, decltype(set)::value>::width, 1);
      bytes = static_cast<size_t>(arguments.images * plan.chunks * plan.padded * plan.padded) * sizeof(Sum<E>);
    });
  });
  return bytes;
}

void gram_cpu(const Parallel& parallel, const Gram& arguments) {
  if (arguments.images == 0) return;
  with_dtype(arguments.dtype, [&](auto type) {
    with_instructions([&](auto set) { gram<decltype(set)::value, decltype(type)>(parallel, arguments); });
  });
}

}  // namespace fastviz
