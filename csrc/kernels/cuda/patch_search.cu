#include "common.cuh"

namespace fastviz {
namespace {

/// A block's windows: 8 rows of 16 threads, each of which has 16 bytes of them side by side.
constexpr int search_rows = 8;
constexpr int search_groups = 16;
constexpr int search_threads = search_rows * search_groups;
/// What shared memory holds at a time: a slab of a neighbourhood, at most so many channels, rows and columns of it.
constexpr int slab_channels = 3;
constexpr int slab_rows = 16;
constexpr int slab_columns = 16;

/// Shared memory of a block, in values of the type that sums run in.
template <typename S>
struct Slab {
  static constexpr int N = width<S>;
  static constexpr int windows = search_groups * N;  // in a row of a block
  // Of the sample: the pixels that the slab meets under the block's windows.
  static constexpr int sample_rows = search_rows + slab_rows - 1;
  static constexpr int sample_columns = windows + slab_columns;
  static constexpr int sample_values = slab_channels * sample_rows * sample_columns;
  static constexpr int neighbourhood_values = slab_channels * slab_rows * slab_columns;
  static constexpr int weight_values = slab_rows * slab_columns;
  static constexpr int bytes = (sample_values + neighbourhood_values + weight_values) * static_cast<int>(sizeof(S));

  S* sample;  // [slab_channels, sample_rows, sample_columns]
  S* neighbourhood;  // [slab_channels, slab_rows, slab_columns]
  S* weights;  // [slab_rows, slab_columns], 0 where the mask is

  __device__ explicit Slab(unsigned char* memory)
      : sample(reinterpret_cast<S*>(memory)),
        neighbourhood(sample + sample_values),
        weights(neighbourhood + neighbourhood_values) {}
};

template <typename T>
struct SearchTask {
  const T* sample;
  const T* neighbourhood;
  const bool* mask;
  const T* weights;
  Sum<T>* output;
  int64_t channels, rows, columns;
  int64_t window_rows, window_columns;
  int64_t output_rows, output_columns;
  bool vectors;  // whether rows of the output are whole vectors
  FastDivide tiles;  // blocks that share a neighbourhood
  FastDivide tiles_across;  // of them, side by side
  int64_t blocks;
};

/// The weight of a pixel of neighbourhood `number`, 0 where it is not known.
template <typename T>
__device__ __forceinline__ Sum<T> weight_of(const SearchTask<T>& task, int64_t number, int64_t pixel) {
  const bool known = task.mask[number * task.window_rows * task.window_columns + pixel];
  return known ? widen(task.weights[pixel]) : Sum<T>(0);
}

/// Where a slab begins in the neighbourhood, and what it has of it.
struct SlabPlace {
  int64_t channel, row, column;
  int channels, rows, columns;
};

/// Stage 1 of the kernel: all threads copy. What lies outside of sample or neighbourhood is 0 and never counts.
template <typename T>
__device__ void fill_slab(const SearchTask<T>& task, const Slab<Sum<T>>& slab, const SlabPlace& place, int64_t number,
                          int64_t top, int64_t left) {
  using S = Sum<T>;
  using Shape = Slab<S>;
  const int rows = place.rows + search_rows - 1;
  for (int i = static_cast<int>(threadIdx.x); i < place.channels * rows * Shape::sample_columns; i += search_threads) {
    const int column = i % Shape::sample_columns, line = i / Shape::sample_columns;
    const int row = line % rows, channel = line / rows;
    const int64_t y = top + place.row + row, x = left + place.column + column;
    const bool inside = y < task.rows && x < task.columns;
    slab.sample[(channel * Shape::sample_rows + row) * Shape::sample_columns + column] =
        inside ? widen(task.sample[((place.channel + channel) * task.rows + y) * task.columns + x]) : S(0);
  }
  for (int i = static_cast<int>(threadIdx.x); i < place.rows * slab_columns; i += search_threads) {
    const int column = i % slab_columns, row = i / slab_columns;
    const int64_t pixel = (place.row + row) * task.window_columns + place.column + column;
    const S weight = column < place.columns ? weight_of(task, number, pixel) : S(0);
    slab.weights[i] = weight;
    const int64_t pixels = task.window_rows * task.window_columns;
    for (int channel = 0; channel < place.channels; ++channel) {
      const int64_t first = (number * task.channels + place.channel + channel) * pixels;
      slab.neighbourhood[channel * slab_rows * slab_columns + i] =
          weight != 0 ? widen(task.neighbourhood[first + pixel]) : S(0);
    }
  }
}

/// Stage 2: a thread adds the slab's part to the sums of its N windows. It takes N columns of the neighbourhood at a
/// time, under which its windows have 2 N pixels of the sample: two vectors for N * N differences.
template <typename S, int N>
__device__ __forceinline__ void add_slab(const Slab<S>& slab, const SlabPlace& place, int row, int group,
                                         S (&sums)[N]) {
  using Shape = Slab<S>;
  for (int i = 0; i < place.rows; ++i) {
    for (int j = 0; j < place.columns; j += N) {
      const Vector<S, N> weights = load_shared<S, N>(slab.weights + i * slab_columns + j);
      bool counts = false;
#pragma unroll
      for (int tap = 0; tap < N; ++tap) counts = counts || weights.value[tap] != 0;
      if (!counts) continue;  // the same for all threads of the block
      S squares[N][N] = {};
      for (int channel = 0; channel < place.channels; ++channel) {
        const S* pixel = slab.sample + (channel * Shape::sample_rows + row + i) * Shape::sample_columns + group * N + j;
        const Vector<S, N> first = load_shared<S, N>(pixel), second = load_shared<S, N>(pixel + N);
        const Vector<S, N> values =
            load_shared<S, N>(slab.neighbourhood + (channel * slab_rows + i) * slab_columns + j);
#pragma unroll
        for (int tap = 0; tap < N; ++tap) {
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const S value = tap + k < N ? first.value[(tap + k) % N] : second.value[(tap + k) % N];
            const S difference = value - values.value[tap];
            squares[tap][k] += difference * difference;
          }
        }
      }
#pragma unroll
      for (int tap = 0; tap < N; ++tap) {
        if (weights.value[tap] == 0) continue;
#pragma unroll
        for (int k = 0; k < N; ++k) sums[k] += weights.value[tap] * squares[tap][k];
      }
    }
  }
}

/// Writes the distances of 8 x 64 windows (8 x 32 in float64) to one neighbourhood. One thread = 4 windows (2) side by
/// side; shared memory: see Slab.
///   0. Add up the weights that count: the divisor; NaN where one is below 0 or not finite.
///   1. Copy a slab of the neighbourhood, and the part of the sample that it meets, to shared memory.
///   2. Add its weighted squares of differences; go on with the next slab.
///   3. Divide, write: in one access where rows are a multiple of 16 bytes.
template <typename T>
__global__ void __launch_bounds__(search_threads, 4) patch_search_kernel(const SearchTask<T> task) {
  using S = Sum<T>;
  using Shape = Slab<S>;
  constexpr int N = Shape::N;
  __shared__ S divisor;
  const Slab<S> slab(launched_shared_memory());
  const int row = static_cast<int>(threadIdx.x) / search_groups, group = static_cast<int>(threadIdx.x) % search_groups;
  for (int64_t block = blockIdx.x; block < task.blocks; block += gridDim.x) {
    const int64_t number = task.tiles.divide(block);
    const int64_t tile = task.tiles.remainder(block, number);
    const int64_t tile_row = task.tiles_across.divide(tile);
    const int64_t top = tile_row * search_rows, left = task.tiles_across.remainder(tile, tile_row) * Shape::windows;

    S share = 0;
    for (int64_t i = threadIdx.x; i < task.window_rows * task.window_columns; i += search_threads) {
      const S weight = widen(task.weights[i]);
      share += weight >= 0 && weight < static_cast<S>(INFINITY) ? weight_of(task, number, i) : static_cast<S>(NAN);
    }
    const S total = block_sum(share);
    if (threadIdx.x == 0) divisor = total;

    S sums[N] = {};
    SlabPlace place;
    for (place.channel = 0; place.channel < task.channels; place.channel += slab_channels) {
      place.channels = static_cast<int>(smaller(slab_channels, task.channels - place.channel));
      for (place.row = 0; place.row < task.window_rows; place.row += slab_rows) {
        place.rows = static_cast<int>(smaller(slab_rows, task.window_rows - place.row));
        for (place.column = 0; place.column < task.window_columns; place.column += slab_columns) {
          place.columns = static_cast<int>(smaller(slab_columns, task.window_columns - place.column));
          __syncthreads();
          fill_slab(task, slab, place, number, top, left);
          __syncthreads();
          add_slab<S, N>(slab, place, row, group, sums);
        }
      }
    }
    __syncthreads();  // of the divisor, where there are no channels

    const int64_t y = top + row, x = left + int64_t{group} * N;
    if (y < task.output_rows && x < task.output_columns) {
      S* output = task.output + (number * task.output_rows + y) * task.output_columns + x;
      Vector<S, N> distances;
#pragma unroll
      for (int k = 0; k < N; ++k) distances.value[k] = divisor == 0 ? S(0) : sums[k] / divisor;
      if (task.vectors) {
        store(output, distances);
      } else {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          if (x + k < task.output_columns) output[k] = distances.value[k];
        }
      }
    }
  }
}

template <typename T>
void patch_search(Stream stream, const PatchSearch& a) {
  using Shape = Slab<Sum<T>>;
  SearchTask<T> task{};
  task.sample = static_cast<const T*>(a.sample);
  task.neighbourhood = static_cast<const T*>(a.neighbourhood);
  task.mask = a.mask;
  task.weights = static_cast<const T*>(a.weights);
  task.output = static_cast<Sum<T>*>(a.output);
  task.channels = a.channels;
  task.rows = a.rows;
  task.columns = a.columns;
  task.window_rows = a.window_rows;
  task.window_columns = a.window_columns;
  task.output_rows = a.output_rows();
  task.output_columns = a.output_columns();
  task.vectors = task.output_columns % Shape::N == 0 && aligned(a.output);
  task.tiles_across = FastDivide(ceil_div(task.output_columns, Shape::windows));
  task.tiles = FastDivide(ceil_div(task.output_rows, search_rows) * task.tiles_across.divisor());
  task.blocks = a.neighbourhoods * task.tiles.divisor();
  launch(patch_search_kernel<T>, task.blocks, search_threads, Shape::bytes, stream, task);
}

}  // namespace

void patch_search_cuda(Stream stream, const PatchSearch& arguments) {
  if (arguments.neighbourhoods == 0) return;
  with_dtype(arguments.dtype, [&](auto type) { patch_search<decltype(type)>(stream, arguments); });
}

}  // namespace fastviz
