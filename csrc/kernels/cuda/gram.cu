#include "common.cuh"
#include "gram_shape.cuh"

namespace fastviz {
namespace {

using namespace gram_shape;

/// Whether products run in the matrix units.
template <typename T>
constexpr bool by_matrix_units = sizeof(T) == 2 && matrix_units;
/// Tiles in shared memory: one is used while the next ones arrive. A step in the matrix units is soon over.
template <typename T>
constexpr int stages = sizeof(T) == 2 ? 3 : 2;
template <typename T>
constexpr int step_places = step_bytes / static_cast<int>(sizeof(T));

/// Threads of a block: a warp for each piece of the tile.
template <int TILE>
constexpr int tile_threads = TILE * TILE / piece_values * 32;

/// Blocks that a multiprocessor should have room for: 64 sums a thread leave 128 registers, 64 of float64 take twice
/// that. Cards without matrix units have shared memory for one large tile of 16-bit values only.
template <typename T, int TILE>
constexpr int blocks_at_a_time = (TILE == 128 ? 2 : 8) / (sizeof(T) == 8 || (sizeof(T) == 2 && !matrix_units) ? 2 : 1);

/// Bytes of shared memory for the channels of one side of a tile.
template <int TILE>
constexpr int side_bytes = TILE * row_bytes;

/// Bytes of the rows in shared memory where a row is a place, as the matrix units take it from channels_last features.
template <int TILE>
constexpr int place_row_bytes = TILE * 2 + 16;
static_assert(step_bytes / 2 * place_row_bytes<64> <= side_bytes<64> &&
              step_bytes / 2 * place_row_bytes<128> <= side_bytes<128>);

template <typename T>
struct GramTask {
  const T* features;
  Sum<T>* partial;  // [images, parts, tiles, tile * tile]
  int64_t channels, places;
  bool channels_last;
  bool vectors;  // 16 bytes at a time may be read
  Parts parts;
  FastDivide divide_parts, divide_tiles;
  int64_t blocks;
};

/// Starts to copy one side of a tile: `TILE` channels from `channel` on, one step of places from `place` on; zeros past
/// the last channel and the last place. A row in shared memory is a channel, or a place if BY_PLACE.
template <typename T, int TILE, bool BY_PLACE>
__device__ __forceinline__ void load_side(const GramTask<T>& task, const T* features, unsigned char* side,
                                          int64_t channel, int64_t place, int64_t last_place) {
  constexpr int threads = tile_threads<TILE>;
  constexpr int step = step_places<T>;
  constexpr int N = width<T>;
  const int thread = static_cast<int>(threadIdx.x);

  const bool by_vectors = task.vectors && (BY_PLACE || !task.channels_last);
  if (by_vectors) {
    // Neighbouring threads read the neighbouring vectors of a channel, or of a place.
    constexpr int row_vectors = BY_PLACE ? TILE / N : step / N;
    constexpr int rows = BY_PLACE ? step : TILE;
    constexpr int shared_row = BY_PLACE ? place_row_bytes<TILE> : row_bytes;
    static_assert(rows * row_vectors % threads == 0);
#pragma unroll 2
    for (int i = 0; i < rows * row_vectors / threads; ++i) {
      const int unit = thread + i * threads;
      const int row = unit / row_vectors;
      const int part = unit % row_vectors;
      const int64_t c = channel + (BY_PLACE ? part * N : row);
      const int64_t l = place + (BY_PLACE ? row : part * N);
      const bool wanted = c < task.channels && l < last_place;
      const int64_t offset = BY_PLACE ? l * task.channels + c : c * task.places + l;
      copy_async<16>(side + row * shared_row + part * 16, features + (wanted ? offset : 0), wanted);
    }
    return;
  }
#pragma unroll 2
  for (int i = 0; i < TILE * step / threads; ++i) {
    const int unit = thread + i * threads;
    int c, l;
    if (BY_PLACE) {
      c = unit % TILE;
      l = unit / TILE;
    } else if (task.channels_last) {
      // A warp reads 8 channels of 4 places: whole sectors of memory, and no bank of shared memory twice.
      c = unit / (8 * step) * 8 + unit % 8;
      l = unit / 8 % step;
    } else {
      c = unit / step;
      l = unit % step;
    }
    const bool wanted = channel + c < task.channels && place + l < last_place;
    const int64_t offset =
        task.channels_last ? (place + l) * task.channels + channel + c : (channel + c) * task.places + place + l;
    unsigned char* target =
        side + (BY_PLACE ? l * place_row_bytes<TILE> + c * 2 : c * row_bytes + l * static_cast<int>(sizeof(T)));
    if constexpr (sizeof(T) >= 4) {
      copy_async<static_cast<int>(sizeof(T))>(target, features + (wanted ? offset : 0), wanted);
    } else {
      *reinterpret_cast<T*>(target) = wanted ? features[offset] : narrow<T>(0);
    }
  }
}

/// Adds the products of one step to a warp's piece. `left` and `right` are its first rows in shared memory.
template <typename T>
__device__ __forceinline__ void multiply_plain(const unsigned char* left, const unsigned char* right,
                                               Sum<T> (&sums)[slices][slice_rows]) {
  constexpr int N = width<T> < 4 ? width<T> : 4;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  left += lane_row(lane) * row_bytes;
  right += lane_column(lane) * row_bytes;
#pragma unroll 1
  for (int offset = 0; offset < step_bytes; offset += N * static_cast<int>(sizeof(T))) {
    Vector<T, N> b[8];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      b[j] = load_shared<T, N>(reinterpret_cast<const T*>(right + 4 * j * row_bytes + offset));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const Vector<T, N> a = load_shared<T, N>(reinterpret_cast<const T*>(left + 8 * i * row_bytes + offset));
#pragma unroll
      for (int k = 0; k < N; ++k) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] += widen(a.value[k]) * widen(b[j].value[k]);
      }
    }
  }
}

/// The same in the matrix units. `left` and `right` are the sides of the tile; the piece begins at channels `row` and
/// `column` of them.
template <typename T, int TILE, bool BY_PLACE>
__device__ __forceinline__ void multiply_in_matrix_units(const unsigned char* left, const unsigned char* right, int row,
                                                         int column, float (&sums)[slices][slice_rows]) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int matrix = lane >> 3;
  // The address that a lane gives for 16 channels x 16 places: matrices 1 and 2 are the other 8 channels and the other
  // 8 places, on the right side the other way round.
  const int left_channel = row + (matrix & 1) * 8, left_place = (matrix >> 1) * 8;
  const int right_channel = column + (matrix >> 1) * 8, right_place = (matrix & 1) * 8;
  const auto address = [&](const unsigned char* side, int channel, int place) {
    return BY_PLACE ? side + (place + (lane & 7)) * place_row_bytes<TILE> + channel * 2
                    : side + (channel + (lane & 7)) * row_bytes + place * 2;
  };
#pragma unroll
  for (int place = 0; place < step_places<T>; place += 16) {
    uint32_t b[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      load_matrices<BY_PLACE>(b[j], address(right, right_channel + 16 * j, right_place + place));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t a[4];
      load_matrices<BY_PLACE>(a, address(left, left_channel + 16 * i, left_place + place));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        multiply_add<T>(sums[2 * i][2 * j], sums[2 * i][2 * j + 1], sums[2 * i + 1][2 * j], sums[2 * i + 1][2 * j + 1],
                        a, b[j / 2][2 * (j % 2)], b[j / 2][2 * (j % 2) + 1]);
      }
    }
  }
}

/// Writes each part's products of each tile of the upper triangle to the workspace. One block = one tile of one part of
/// one image, one warp = a piece of 64 x 32 products, one thread = 64 of them. Shared memory (given at launch):
/// `stages` pairs of sides.
///   1. Start the copies of the first stages - 1 steps.
///   2. For each step: wait for its copies, start those of a later step, multiply. Warps whose piece lies below the
///      diagonal or past the last channel only copy.
///   3. Write the sums, 16 bytes a lane.
template <typename T, int TILE, bool CHANNELS_LAST>
__global__ void __launch_bounds__(tile_threads<TILE>, blocks_at_a_time<T, TILE>)
    gram_products_kernel(const GramTask<T> task) {
  using S = Sum<T>;
  constexpr int step = step_places<T>;
  constexpr int warps_a_row = TILE / piece_columns;
  constexpr bool by_place = CHANNELS_LAST && by_matrix_units<T>;
  unsigned char* shared = launched_shared_memory();
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int row = warp / warps_a_row * piece_rows;
  const int column = warp % warps_a_row * piece_columns;

  for (int64_t block = blockIdx.x; block < task.blocks; block += gridDim.x) {
    // Neighbouring blocks share a part: its places are read from memory once and stay in the cache.
    const int64_t image_part = task.divide_tiles.divide(block);
    const Tile tile = tile_of(task.divide_tiles.remainder(block, image_part));
    const int64_t image = task.divide_parts.divide(image_part);
    const int64_t first_place = task.divide_parts.remainder(image_part, image) * task.parts.places;
    const int64_t last_place = smaller(first_place + task.parts.places, task.places);
    const T* features = task.features + image * task.channels * task.places;
    const bool diagonal = tile.row == tile.column;
    const bool wanted = piece_wanted(tile.row * TILE + row, tile.column * TILE + column, task.channels);

    const auto start_copies = [&](int64_t place, int stage) {
      if (place < last_place) {
        unsigned char* side = shared + stage * (2 * side_bytes<TILE>);
        load_side<T, TILE, by_place>(task, features, side, tile.row * TILE, place, last_place);
        if (!diagonal) {
          load_side<T, TILE, by_place>(task, features, side + side_bytes<TILE>, tile.column * TILE, place, last_place);
        }
      }
      copy_async_commit();
    };

    S sums[slices][slice_rows] = {};
    for (int i = 0; i < stages<T> - 1; ++i) start_copies(first_place + i * step, i);
    int stage = 0;
    for (int64_t place = first_place; place < last_place; place += step) {
      copy_async_wait<stages<T> - 2>();
      __syncthreads();
      // The stage before this one has been multiplied by every warp and is free.
      start_copies(place + (stages<T> - 1) * step, stage == 0 ? stages<T> - 1 : stage - 1);
      const unsigned char* left = shared + stage * (2 * side_bytes<TILE>);
      stage = stage + 1 == stages<T> ? 0 : stage + 1;
      if (!wanted) continue;
      const unsigned char* right = diagonal ? left : left + side_bytes<TILE>;
      if constexpr (by_matrix_units<T>) {
        multiply_in_matrix_units<T, TILE, by_place>(left, right, row, column, sums);
      } else {
        multiply_plain<T>(left + row * row_bytes, right + column * row_bytes, sums);
      }
    }
    __syncthreads();  // the next tile overwrites shared memory
    if (!wanted) continue;

    S* output = task.partial + block * (TILE * TILE) + warp * piece_values;
#pragma unroll
    for (int slice = 0; slice < slices; ++slice) {
#pragma unroll
      for (int value = 0; value < 8; value += 4) {
        const Vector<S, 4> four{
            {sums[slice][value], sums[slice][value + 1], sums[slice][value + 2], sums[slice][value + 3]}};
        store(output + slice * slice_values + slot_of(lane, value), four);
      }
    }
  }
}

template <typename T>
struct GramFinishTask {
  const Sum<T>* partial;
  const T* target;
  T* output;
  Sum<T>* losses;  // [blocks]; null: not wanted
  Sum<T> scale;
  int64_t channels;
  int tile;
  int64_t target_stride;  // values from one target to the next
  int64_t parts, tiles;
  FastDivide image_blocks;  // blocks of an image
  FastDivide tile_blocks;  // blocks of a tile
  int64_t blocks;
};

constexpr int finish_groups = 4;

/// Where the first kernel left a lane's value.
template <typename T>
__device__ __forceinline__ Place place_of(int lane, int value) {
  if constexpr (by_matrix_units<T>) {
    return tensor_place(lane, value);
  } else {
    return plain_place(lane, value);
  }
}

/// Writes the matrix from the sums of its parts: scale, difference from the target, both halves; and each block's part
/// of the loss. One block = one slice of 8 x 32 products, one thread = one product and its mirror image. Shared memory:
/// the slice, the mirrored part of the target.
///   1. Four groups of 64 threads add every fourth part, 4 sums a thread; then the four sums are added.
///   2. The slice is laid out in rows; the mirrored part of the target is read along its own rows.
///   3. Write the products row by row, and their mirror images row by row.
template <typename T>
__global__ void __launch_bounds__(256) gram_finish_kernel(const GramFinishTask<T> task) {
  using S = Sum<T>;
  __shared__ Vector<S, 4> group_sums[finish_groups][slice_values / 4];
  __shared__ S products[slice_rows][piece_columns + 1];
  __shared__ S mirrored[slice_rows][piece_columns + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const int group = thread / (slice_values / 4), in_group = thread % (slice_values / 4);
  const int row = thread / piece_columns, column = thread % piece_columns;  // along the rows of the slice
  const int mirrored_row = thread % slice_rows, mirrored_column = thread / slice_rows;  // along its columns

  for (int64_t block = blockIdx.x; block < task.blocks; block += gridDim.x) {
    const int64_t image = task.image_blocks.divide(block);
    const int64_t in_image = task.image_blocks.remainder(block, image);
    const int64_t tile_index = task.tile_blocks.divide(in_image);
    const int slice = static_cast<int>(task.tile_blocks.remainder(in_image, tile_index));
    const int piece = slice / slices;
    const int pieces_a_row = task.tile / piece_columns;
    const Tile tile = tile_of(tile_index);
    const int64_t first_row = tile.row * task.tile + piece / pieces_a_row * piece_rows + slice % slices * slice_rows;
    const int64_t first_column = tile.column * task.tile + piece % pieces_a_row * piece_columns;
    if (first_row >= task.channels || first_column >= task.channels || first_row >= first_column + piece_columns) {
      if (task.losses && thread == 0) task.losses[block] = 0;
      continue;
    }

    const int64_t part_stride = task.tiles * task.tile * task.tile;
    const S* partial = task.partial + image * task.parts * part_stride + tile_index * task.tile * task.tile +
                       slice * slice_values + in_group * 4;
    Vector<S, 4> sum = splat<S, 4>(0);
#pragma unroll 4
    for (int64_t part = group; part < task.parts; part += finish_groups) {
      const Vector<S, 4> four = load<S, 4>(partial + part * part_stride);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.value[i] += four.value[i];
    }
    group_sums[group][in_group] = sum;
    __syncthreads();

    S product = 0;
#pragma unroll
    for (int i = 0; i < finish_groups; ++i) product += group_sums[i][thread / 4].value[thread % 4];
    const Place place = place_of<T>(slot_lane(thread), slot_value(thread));
    products[place.row][place.column] = task.scale * product;
    const T* target = task.target ? task.target + image * task.target_stride : nullptr;
    const int64_t r = first_row + row, c = first_column + column;
    const bool wanted = r <= c && c < task.channels;
    const int64_t mirrored_r = first_row + mirrored_row, mirrored_c = first_column + mirrored_column;
    const bool mirrored_wanted = mirrored_r < mirrored_c && mirrored_c < task.channels;
    if (target && mirrored_wanted) {
      mirrored[mirrored_row][mirrored_column] = widen(target[mirrored_c * task.channels + mirrored_r]);
    }
    __syncthreads();

    S result = products[row][column];
    if (target) {
      S loss = 0;
      if (wanted) {
        const S difference = result - widen(target[r * task.channels + c]);
        const S other = r == c ? difference : result - mirrored[row][column];
        loss = r == c ? difference * difference : difference * difference + other * other;
        result = difference + other;
        products[row][column] = result;
      }
      loss = block_sum(loss);  // its barrier also orders the write above before the read below
      if (task.losses && thread == 0) task.losses[block] = loss;
    }
    T* output = task.output + image * task.channels * task.channels;
    if (wanted) output[r * task.channels + c] = narrow<T>(result);
    if (mirrored_wanted) {
      output[mirrored_c * task.channels + mirrored_r] = narrow<T>(products[mirrored_row][mirrored_column]);
    }
    __syncthreads();
  }
}

/// Sizes of the workspace: the products of each part, then the losses of each block of the second kernel.
struct GramWorkspace {
  Parts parts;
  int64_t tiles;
  int64_t products;
  int64_t finish_blocks;

  explicit GramWorkspace(const Gram& a) {
    const int64_t value_bytes = a.dtype == Dtype::float64 ? 8 : (a.dtype == Dtype::float32 ? 4 : 2);
    const int64_t tile = tile_size(a.channels);
    parts = gram_shape::parts(a.images, a.channels, a.places, value_bytes);
    tiles = gram_shape::tiles(a.channels);
    products = a.images * parts.count * tiles * tile * tile;
    finish_blocks = a.images * tiles * (tile * tile / slice_values);
  }
};

template <typename T, int TILE>
void launch_products(Stream stream, const GramTask<T>& task) {
  constexpr size_t shared_bytes = size_t{2} * side_bytes<TILE> * stages<T>;
  if constexpr (sizeof(T) == 2) {
    if (task.channels_last) {
      return launch(gram_products_kernel<T, TILE, true>, task.blocks, tile_threads<TILE>, shared_bytes, stream, task);
    }
  }
  launch(gram_products_kernel<T, TILE, false>, task.blocks, tile_threads<TILE>, shared_bytes, stream, task);
}

template <typename T>
void gram(Stream stream, const Gram& a) {
  using S = Sum<T>;
  const GramWorkspace workspace(a);
  S* partial = static_cast<S*>(a.workspace);
  S* losses = partial + workspace.products;
  if (workspace.tiles > 0) {
    GramTask<T> task{};
    task.features = static_cast<const T*>(a.features);
    task.partial = partial;
    task.channels = a.channels;
    task.places = a.places;
    task.channels_last = a.channel_stride == 1 && a.place_stride == a.channels;
    task.vectors = aligned(a.features) && (task.channels_last ? a.channels : a.places) % width<T> == 0;
    task.parts = workspace.parts;
    task.divide_parts = FastDivide(workspace.parts.count);
    task.divide_tiles = FastDivide(workspace.tiles);
    task.blocks = a.images * workspace.parts.count * workspace.tiles;
    const int tile = tile_size(a.channels);
    if (tile == 64) {
      launch_products<T, 64>(stream, task);
    } else {
      launch_products<T, 128>(stream, task);
    }

    GramFinishTask<T> finish{};
    finish.partial = partial;
    finish.target = static_cast<const T*>(a.target);
    finish.output = static_cast<T*>(a.output);
    finish.losses = a.loss ? losses : nullptr;
    finish.scale = static_cast<S>(a.scale);
    finish.channels = a.channels;
    finish.tile = tile;
    finish.target_stride = a.target_images == 1 ? 0 : a.channels * a.channels;
    finish.parts = workspace.parts.count;
    finish.tiles = workspace.tiles;
    finish.tile_blocks = FastDivide(tile * tile / slice_values);
    finish.image_blocks = FastDivide(workspace.tiles * finish.tile_blocks.divisor());
    finish.blocks = workspace.finish_blocks;
    launch(gram_finish_kernel<T>, finish.blocks, 256, 0, stream, finish);
  }
  if (a.loss) {
    launch(sum_rows_kernel<S>, a.images, 256, 0, stream, static_cast<const S*>(losses),
           workspace.finish_blocks / a.images, a.images, static_cast<S*>(a.loss));
  }
}

}  // namespace

size_t gram_cuda_workspace(const Gram& arguments) {
  if (arguments.images == 0) return 0;
  const GramWorkspace workspace(arguments);
  const int64_t sums = workspace.products + (arguments.loss ? workspace.finish_blocks : 0);
  return static_cast<size_t>(sums) * (arguments.dtype == Dtype::float64 ? sizeof(double) : sizeof(float));
}

void gram_cuda(Stream stream, const Gram& arguments) {
  if (arguments.images == 0) return;
  with_dtype(arguments.dtype, [&](auto type) { gram<decltype(type)>(stream, arguments); });
}

}  // namespace fastviz
