// The kernels: what each computes, its parameters and its launchers. No torch header is included here or below, so the
// same files build and are tested without torch (see CMakeLists.txt).
//
// Pictures come in two memory orders, and one description serves both. A batch of B pictures is B * planes blocks of
// `rows` rows; a row holds `columns` pixels of `pixel` values each:
//   contiguous [B, C, H, W]:     planes = C, rows = H, columns = W, pixel = 1
//   channels_last [B, C, H, W]:  planes = 1, rows = H, columns = W, pixel = C
// Volumes [B, C, D, H, W] have D slices of rows in each block; pictures have one.
// Sizes and offsets are int64_t. Sums run in float32 (float64 for float64) in an order that depends on the shape only.

#pragma once

#include <cstddef>
#include <cstdint>

#include "host_device.h"

struct CUstream_st;

namespace fastviz {

enum class Dtype { float32, float64, float16, bfloat16 };

/// Splits [begin, end) among threads; the operator files pass torch's, the C++ test a serial and a threaded one.
struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  void (*run)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);
  /// How many there are: for how work is shared out, never for the order in which numbers are added.
  int64_t threads;
};

using Stream = CUstream_st*;

/// The instruction sets that the CPU kernels are compiled for: what every x86-64 (or other) processor has, x86-64-v3,
/// x86-64-v4.
enum class Instructions { baseline, avx2, avx512 };
/// The best one that this processor has.
Instructions processor_instructions();
/// The one that the kernels use: that, or less where the environment variable FASTVIZ_CPU (baseline, avx2) says so.
Instructions instructions();

/// Rows of pixels in memory; see the top of this file.
struct Layout {
  int64_t planes;
  int64_t rows;
  int64_t columns;
  int64_t pixel;
  int64_t slices = 1;

  int64_t row() const { return columns * pixel; }
  int64_t plane() const { return slices * rows * columns * pixel; }
  int64_t picture() const { return planes * plane(); }
};

/// Boxes and origins have numbers for the last `axes` of slice, row and column; of the axes before these they hold all.
/// This gives the one of `axis` (0 slice, 1 row, 2 column), or `otherwise`.
FASTVIZ_HOST_DEVICE int64_t of_axis(const int64_t* numbers, int64_t axes, int64_t axis, int64_t otherwise) {
  const int64_t at = axis + axes - 3;
  return at < 0 ? otherwise : numbers[at];
}

/// occlude: output[p] = images[index[p]], with the pixels of boxes[p] taken from the fill.
/// A box is (top, left, bottom, right), half open, clipped to the picture; an empty one changes nothing. With three
/// axes it is (front, top, left, back, bottom, right), with one (left, right).
struct Occlude {
  Dtype dtype;
  Layout layout;
  int64_t images;
  int64_t windows;
  const void* input;  // [images] pictures
  const int64_t* boxes;  // [windows, 2 * axes]
  const int64_t* image_index;  // [windows], or null: every window is of picture 0
  const void* fill;  // pictures, or null: fill_value
  int64_t fill_images;  // 1, or one fill for each image
  double fill_value;
  void* output;  // [windows] pictures
  int64_t axes = 2;
};
void occlude_cpu(const Parallel& parallel, const Occlude& arguments);
/// An index outside [0, images) gives a picture of NaN (the CPU operator raises; here that would need a
/// synchronisation).
void occlude_cuda(Stream stream, const Occlude& arguments);

/// Backward of occlude: output[n] = sum of grad[p] over the windows p of picture n, where inside is false over the
/// pixels outside of the box (gradient of the images), where it is true over those inside (gradient of the fill).
struct OccludeBackward {
  Dtype dtype;
  Layout layout;
  int64_t images;
  bool inside;
  const void* grad;  // [windows] pictures
  const int64_t* boxes;  // [windows, 2 * axes]
  const int64_t* order;  // [windows], window numbers sorted by picture; sums follow this order
  const int64_t* offsets;  // [images + 1], the part of `order` that belongs to a picture
  void* output;  // [images] pictures
  int64_t axes = 2;
};
void occlude_backward_cpu(const Parallel& parallel, const OccludeBackward& arguments);
void occlude_backward_cuda(Stream stream, const OccludeBackward& arguments);

/// splice: windows of clean maps with dirty crops pasted in. The value of window p at (i, j), which is at
/// (y, x) = window_origin[p] + (i, j) in the map, is
///   dirty[p, :, y - dirty_origin[p, 0], x - dirty_origin[p, 1]] inside of the dirty crop,
///   else clean[index[p], :, y, x] inside of the map, else pad_value.
/// The dirty crop counts only where it lies inside of the map: outside is padding. Volumes have slices besides; origins
/// of one axis are those of columns.
struct Splice {
  Dtype dtype;
  Layout layout;  // of the clean maps
  int64_t dirty_rows, dirty_columns;
  int64_t window_rows, window_columns;
  int64_t images;
  int64_t windows;
  const void* clean;  // [images] maps
  const void* dirty;  // [windows] crops, same memory order
  const int64_t* dirty_origin;  // [windows, axes], (slice, row, column) in the map; may be negative
  const int64_t* window_origin;  // [windows, axes]
  const int64_t* image_index;  // [windows], or null: every window is of map 0
  double pad_value;
  void* output;  // [windows] windows
  int64_t axes = 2;
  int64_t dirty_slices = 1, window_slices = 1;
};
void splice_cpu(const Parallel& parallel, const Splice& arguments);
/// An index outside [0, images) gives a window of NaN, as in occlude_cuda.
void splice_cuda(Stream stream, const Splice& arguments);

enum class ReluRule { plain, guided, deconvnet };

/// guided_relu: output = x where not x <= 0, else 0 (so NaN stays NaN, as torch's relu has it), and one bit per value,
/// 1 where the value passed: bit i % 8 of mask[i / 8], i counted in memory order. Unused bits of the last byte are 0.
/// Bounded: values from `upper` on, which is above 0, become `upper`, and their bits 0; by the rule deconvnet the bits
/// of all others are 1. Output may be input.
struct GuidedRelu {
  Dtype dtype;
  ReluRule rule;
  bool bounded;
  double upper;
  int64_t count;
  const void* input;
  void* output;
  uint8_t* mask;  // [(count + 7) / 8], or null: not wanted
};
void guided_relu_cpu(const Parallel& parallel, const GuidedRelu& arguments);
void guided_relu_cuda(Stream stream, const GuidedRelu& arguments);

/// Backward of guided_relu, with R the gradient that comes from above and m the mask:
///   plain R * m,  guided and deconvnet R * m where not R <= 0, else 0 (so NaN stays NaN where m is 1).
struct GuidedReluBackward {
  Dtype dtype;
  ReluRule rule;
  int64_t count;
  const void* grad;
  const uint8_t* mask;  // or null: all bits are 1
  void* output;
};
void guided_relu_backward_cpu(const Parallel& parallel, const GuidedReluBackward& arguments);
void guided_relu_backward_cuda(Stream stream, const GuidedReluBackward& arguments);

enum class VariationNorm { isotropic, l1, l2 };

/// total_variation, with v = x[i+1, j] - x[i, j] and h = x[i, j+1] - x[i, j]; per picture, over planes and pixels:
///   isotropic  vertical_weight * sum (v^2 + h^2)^(beta / 2)    (horizontal_weight is not used)
///   l1         sum vertical_weight * |v| + horizontal_weight * |h|
///   l2         sum vertical_weight * v^2 + horizontal_weight * h^2
/// crop: over the pixels that have both neighbours; else over all, a missing difference being 0.
/// The gradient at a point where it does not exist (v = h = 0 with beta < 2, |0|) is 0.
struct TotalVariation {
  Dtype dtype;
  Layout layout;
  int64_t images;
  VariationNorm norm;
  double beta;
  bool crop;
  double vertical_weight;
  double horizontal_weight;
  const void* input;  // [images] pictures
  void* value;  // [images], float64 for float64 and float32 for every other dtype; null: not wanted
  void* gradient;  // [images] pictures, or null: not wanted
  const void* factor;  // [images], multiplies the gradient of each picture, the dtype of `value`; null: 1
  void* workspace;  // total_variation_*_workspace bytes
};
size_t total_variation_cpu_workspace(const TotalVariation& arguments);
size_t total_variation_cuda_workspace(const TotalVariation& arguments);
void total_variation_cpu(const Parallel& parallel, const TotalVariation& arguments);
void total_variation_cuda(Stream stream, const TotalVariation& arguments);

/// gram: output[n] = scale * F F^T, F = features[n] of C channels and L places; half of the products are computed, the
/// other half is mirrored. Products and sums of float16 and bfloat16 features run in float32.
/// gram_loss: with D = scale * F F^T - target[n], loss[n] = sum of D^2 and output[n] = D + D^T (half of the gradient of
/// the loss to the Gram matrix and its mirror image).
struct Gram {
  Dtype dtype;
  int64_t images;
  int64_t channels;
  int64_t places;
  int64_t channel_stride;  // 1 in channels_last, else `places`
  int64_t place_stride;  // `channels` in channels_last, else 1
  double scale;
  const void* features;  // [images], a picture is channels * places values
  const void* target;  // [target_images, C, C], or null: gram
  int64_t target_images;  // 1 or images
  void* output;  // [images, C, C]
  void* loss;  // [images], float64 for float64 and float32 for every other dtype; null: gram
  void* workspace;  // gram_*_workspace bytes
};
size_t gram_cpu_workspace(const Gram& arguments);
size_t gram_cuda_workspace(const Gram& arguments);
void gram_cpu(const Parallel& parallel, const Gram& arguments);
void gram_cuda(Stream stream, const Gram& arguments);

/// patch_search: how far each window of a sample is from neighbourhoods of which some pixels are known.
///   output[b, y, x] = sum_ij u_ij sum_c (sample[c, y + i, x + j] - neighbourhoods[b, c, i, j])^2 / sum_ij u_ij
/// with u_ij = weights[i, j] where masks[b, i, j], else 0; 0 for every window where the divisor is 0. Pixels of
/// u_ij = 0 are not looked at: NaN there, in sample or neighbourhood, does not reach the output. Weights are finite and
/// at least 0.
struct PatchSearch {
  Dtype dtype;
  int64_t channels;
  int64_t rows, columns;  // of the sample
  int64_t window_rows, window_columns;  // at most those of the sample
  int64_t neighbourhoods;
  const void* sample;  // [channels, rows, columns]
  const void* neighbourhood;  // [neighbourhoods, channels, window_rows, window_columns]
  const bool* mask;  // [neighbourhoods, window_rows, window_columns]
  const void* weights;  // [window_rows, window_columns]
  void* output;  // [neighbourhoods, rows - window_rows + 1, columns - window_columns + 1], float64 or float32

  int64_t output_rows() const { return rows - window_rows + 1; }
  int64_t output_columns() const { return columns - window_columns + 1; }
};
void patch_search_cpu(const Parallel& parallel, const PatchSearch& arguments);
/// Weights below 0 or not finite give NaN (the CPU operator raises; here that would need a synchronisation).
void patch_search_cuda(Stream stream, const PatchSearch& arguments);

/// grow_texture: fills pixels of a canvas one after the other, each with the middle pixel of a window of the sample
/// that is like the window around it (Efros and Leung 1999). With d the sum of patch_search over the pixels that are
/// filled by then, a pixel takes number floor(chance * k) of the k windows with d <= (1 + epsilon) * min d, in
/// row-major order; it stays as it is if there is none, or if that d, divided by the sum of the weights and the
/// channels, is not below `limit`. Pixels out of each other's windows are searched for at a time, which changes
/// nothing. On the CPU only.
struct GrowTexture {
  Dtype dtype;  // float32 or float64
  int64_t channels;
  int64_t rows, columns;  // of the sample
  int64_t window;  // odd, at least 3, at most the sample's sides
  int64_t canvas_rows, canvas_columns;
  int64_t pixels;
  const void* sample;  // [channels, rows, columns], finite
  const bool* usable;  // [window_rows, window_columns], at least one of them, or null: all
  const void* weights;  // [window, window], 0 or more
  const int64_t* places;  // [pixels], in the canvas, whose windows lie in it
  const double* chances;  // [pixels], at least 0 and below 1
  double epsilon, limit;
  void* values;  // [channels, canvas_rows, canvas_columns]
  bool* filled;  // [canvas_rows, canvas_columns]
  int64_t* sources;  // [canvas_rows, canvas_columns]: the window that a pixel came from, -1 where none; only for speed

  int64_t window_rows() const { return rows - window + 1; }
  int64_t window_columns() const { return columns - window + 1; }
};
void grow_texture_cpu(const Parallel& parallel, const GrowTexture& arguments);

/// winograd_tiles, winograd_maps: the two ends of a 3x3 convolution with stride 1 by F(4x4, 3x3) (Lavin, Gray 2016),
/// float32, on the CPU only. Tiles of 4 x 4 values of the output are numbered image by image, row by row; a call is
/// about those from `begin` to `end`. What stands between is 36 matrix products, [tiles, channels in] by [channels in,
/// out].
///
/// The 6 x 6 values that each tile reads, beginning `top` rows above it and `left` columns before it, zero where they
/// are out of the picture, transformed.
struct WinogradTiles {
  int64_t channels, rows, columns;  // of the input
  int64_t top, left;
  int64_t tile_rows, tile_columns;  // of an image
  int64_t begin, end;
  const float* input;  // [images, rows, columns, channels]
  float* output;  // [36, end - begin, channels]
};
void winograd_tiles_cpu(const Parallel& parallel, const WinogradTiles& arguments);

/// The 4 x 4 values of each tile, as far as they are in the picture: the products transformed, plus `bias`, plus
/// `other`, rectified.
struct WinogradMaps {
  int64_t channels, rows, columns;  // of the output
  int64_t tile_rows, tile_columns;  // of an image
  int64_t begin, end;
  bool rectify;
  const float* product;  // [36, end - begin, channels]
  const float* bias;  // [channels], or null
  const float* other;  // as output, or null
  float* output;  // [images, rows, columns, channels]
};
void winograd_maps_cpu(const Parallel& parallel, const WinogradMaps& arguments);

/// fill_in: each removed pixel becomes the weighted mean of its 8 neighbours, filled in or not, those beyond the border
/// left out (Rong et al. 2022, equation 5): pixels at its sides weigh 2, at its corners 1. A linear system for each
/// plane, solved by conjugate gradients in float64 with a multigrid cycle in float32 as preconditioner, until its
/// estimated error is at most `accuracy` times the largest absolute value that is known. On the CPU only: planes are
/// solved one by one, in a core's own cache.
struct FillIn {
  int64_t pictures, channels, rows, columns;
  double accuracy;
  int64_t most_steps;
  const bool* removed;  // [pictures, rows, columns], neither none of a picture nor all
  double* values;  // [pictures, channels, rows, columns], finite; removed ones are written
  int64_t* steps;  // [pictures, channels]: how many it took, -1 where these were not enough
};
void fill_in_cpu(const Parallel& parallel, const FillIn& arguments);

}  // namespace fastviz
