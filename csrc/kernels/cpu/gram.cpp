#include <algorithm>
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

/// output[r, c] (+)= sum over k of left[k, r] * right[k, c]; both panels hold `width` channels a place.
template <typename T>
FASTVIZ_INLINE void multiply(const typename T::Sum* left, const typename T::Sum* right, int64_t depth,
                             typename T::Sum* output, int64_t stride, bool first) {
  using Vector = typename T::Vector;
  using Unaligned = typename T::Unaligned;
  Vector sum[T::rows][T::count] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector columns[T::count];
#pragma GCC unroll 8
    for (int v = 0; v < T::count; ++v) {
      columns[v] = *reinterpret_cast<const Unaligned*>(right + k * T::width + v * T::lanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < T::rows; ++r) {
      const typename T::Sum row = left[k * T::width + r];
#pragma GCC unroll 8
      for (int v = 0; v < T::count; ++v) sum[r][v] += row * columns[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < T::rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < T::count; ++v) {
      Unaligned* place = reinterpret_cast<Unaligned*>(output + r * stride + v * T::lanes);
      *place = first ? sum[r][v] : *place + sum[r][v];
    }
  }
}

/// What the tasks of one call need to know; independent of the number of threads. At least one image and channel.
struct Plan {
  int64_t panels;  // of `width` channels; the last one is filled up with zeros
  int64_t padded;  // channels, filled up
  int64_t chunks;
  int64_t chunk;  // places in a chunk, a multiple of `depth` but for the last
  int64_t groups;  // tasks that share a chunk, each with its own columns of panels

  static constexpr int64_t depth = 256;

  Plan(const Gram& a, int64_t width) {
    panels = (a.channels + width - 1) / width;
    padded = panels * width;
    // Enough tasks for many threads, few enough that the chunks' matrices stay small beside the features.
    constexpr int64_t wanted_tasks = 32;
    const int64_t steps = std::max<int64_t>((a.places + depth - 1) / depth, 1);
    const int64_t wanted = std::max<int64_t>((wanted_tasks + a.images - 1) / a.images, 1);
    const int64_t affordable = std::max<int64_t>(2 * a.places / std::max<int64_t>(a.channels, 1), 1);
    chunks = std::min({steps, wanted, affordable});
    chunk = (steps + chunks - 1) / chunks * depth;
    chunks = std::max<int64_t>((a.places + chunk - 1) / chunk, 1);
    constexpr int64_t few_tasks = 8;
    groups = std::clamp<int64_t>(few_tasks / (a.images * chunks), 1, (panels + 1) / 2);
  }
};

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
  // A transposition, in squares small enough for the first cache on both sides.
  constexpr int64_t square = 8;
  int64_t c = 0;
  for (; c + square <= channels; c += square) {
    int64_t k = 0;
    for (; k + square <= count; k += square) {
      S values[square][square];
      for (int64_t i = 0; i < square; ++i) {
        for (int64_t j = 0; j < square; ++j) values[j][i] = widen(source[(c + i) * a.channel_stride + k + j]);
      }
      for (int64_t j = 0; j < square; ++j) {
        for (int64_t i = 0; i < square; ++i) packed[(k + j) * T::width + c + i] = values[j][i];
      }
    }
    for (; k < count; ++k) {
      for (int64_t i = 0; i < square; ++i) {
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
  const int64_t first = chunk * plan.chunk;
  const int64_t last = std::min(first + plan.chunk, a.places);
  const int64_t panel = Plan::depth * T::width;
  // A column of panels reaches from the top to the diagonal. Paired from both ends, columns are equal work.
  const auto mine = [&](int64_t column) { return std::min(column, plan.panels - 1 - column) % plan.groups == group; };
  int64_t needed = 0;
  for (int64_t column = 0; column < plan.panels; ++column) {
    if (mine(column)) needed = column + 1;
  }
  for (int64_t place = first; place < last || place == first; place += Plan::depth) {
    const int64_t count = std::min(Plan::depth, last - place);
    for (int64_t i = 0; i < needed; ++i) {
      pack<T>(a, features, i * T::width, place, count, packed + i * panel);
    }
    for (int64_t column = 0; column < needed; ++column) {
      if (!mine(column)) continue;
      for (int64_t row = 0; row <= column; ++row) {
        for (int64_t r = 0; r < T::width; r += T::rows) {
          multiply<T>(packed + row * panel + r, packed + column * panel, count,
                      matrix + (row * T::width + r) * plan.padded + column * T::width, plan.padded, place == first);
        }
      }
    }
  }
}

/// Squares of the matrix that the last step handles at a time, so that both triangles are written in whole lines.
constexpr int64_t square = 32;

int64_t squares(const Gram& a) { return (a.channels + square - 1) / square; }

/// Adds the chunks of rows [top, top + square) from the diagonal on, finishes and mirrors them. Returns their loss.
template <typename E>
double finish_rows(const Gram& a, const Plan& plan, int64_t image, int64_t top, const Sum<E>* matrices) {
  using S = Sum<E>;
  const int64_t size = plan.padded * plan.padded;
  const S* first = matrices + image * plan.chunks * size;
  E* output = static_cast<E*>(a.output) + image * a.channels * a.channels;
  const E* target = static_cast<const E*>(a.target);
  if (target && a.target_images > 1) target += image * a.channels * a.channels;
  const int64_t bottom = std::min(top + square, a.channels);
  double loss = 0;
  for (int64_t i = top; i < bottom; ++i) {
    for (int64_t j = i; j < a.channels; ++j) {
      S sum = 0;
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) sum += first[chunk * size + i * plan.padded + j];
      S value = static_cast<S>(a.scale) * sum;
      if (target) {
        const S upper = value - widen(target[i * a.channels + j]);
        const S lower = value - widen(target[j * a.channels + i]);
        loss += static_cast<double>(upper) * static_cast<double>(upper);
        if (i != j) loss += static_cast<double>(lower) * static_cast<double>(lower);
        value = upper + lower;
      }
      output[i * a.channels + j] = narrow<E>(value);
    }
  }
  for (int64_t j = top; j < a.channels; ++j) {
    for (int64_t i = top; i < std::min(bottom, j); ++i) {
      output[j * a.channels + i] = output[i * a.channels + j];
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
  const Plan plan(a, T::width);
  const int64_t size = plan.padded * plan.padded;
  S* matrices = static_cast<S*>(a.workspace);
  const E* features = static_cast<const E*>(a.features);
  const int64_t per_image = plan.chunks * plan.groups;
  const int64_t work = a.channels * a.channels * plan.chunk / plan.groups;
  parallel_for(parallel, a.images * per_image, work, [&](int64_t begin, int64_t end) {
    std::vector<S> packed(static_cast<size_t>(plan.padded * Plan::depth));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / per_image;
      const int64_t chunk = task % per_image / plan.groups;
      Target<set>::template run<accumulate<T, E>>(a, plan, features + image * a.channels * a.places, chunk,
                                                  task % plan.groups, packed.data(),
                                                  matrices + (image * plan.chunks + chunk) * size);
    }
  });
  const int64_t tasks = a.images * squares(a);
  std::vector<double> loss(static_cast<size_t>(tasks));
  parallel_for(parallel, tasks, square * a.channels * plan.chunks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      loss[static_cast<size_t>(task)] =
          finish_rows<E>(a, plan, task / squares(a), task % squares(a) * square, matrices);
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
      const Plan plan(arguments, Tile<Sum<E>, decltype(set)::value>::width);
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
