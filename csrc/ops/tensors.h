// What every operator asks of its tensors: checks, memory order, new tensors. No arithmetic.

#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "dispatch.h"

namespace fastviz {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

inline Dtype dtype_of(const Tensor& tensor, const char* argument) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    default:
      STD_TORCH_CHECK(false, argument, " should be float32, float64, float16 or bfloat16, got another dtype");
  }
}

inline void check_dims(const Tensor& tensor, const char* argument, int64_t dims) {
  STD_TORCH_CHECK(tensor.dim() == dims, argument, " should have ", dims, " dimensions, got ", tensor.dim());
}

/// Pictures [N, C, H, W] or volumes [N, C, D, H, W].
inline void check_pictures(const Tensor& tensor, const char* argument) {
  STD_TORCH_CHECK(tensor.dim() == 4 || tensor.dim() == 5, argument, " should have 4 or 5 dimensions, got ",
                  tensor.dim());
}

inline void check_size(const Tensor& tensor, const char* argument, int64_t dim, int64_t size) {
  STD_TORCH_CHECK(tensor.size(dim) == size, argument, " should have ", size, " elements in dimension ", dim, ", got ",
                  tensor.size(dim));
}

inline void check_int64(const Tensor& tensor, const char* argument) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, argument, " should be int64, got another dtype");
}

inline void check_same_dtype(const Tensor& tensor, const char* argument, const Tensor& other,
                             const char* other_argument) {
  STD_TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), argument, " should have the dtype of ", other_argument,
                  ", got another one");
}

inline void check_same_device(const Tensor& tensor, const char* argument, const Tensor& other,
                              const char* other_argument) {
  STD_TORCH_CHECK(tensor.is_cpu() == other.is_cpu() && tensor.get_device_index() == other.get_device_index(), argument,
                  " should be on the device of ", other_argument, ", got another one");
}

/// torch's rule: dimensions of size 1 may have any stride. Pictures [N, C, H, W] and volumes [N, C, D, H, W].
inline bool has_channels_last_strides(const Tensor& tensor) {
  if (tensor.dim() != 4 && tensor.dim() != 5) return false;
  int64_t expected = 1;
  const auto follows = [&](int64_t dim) {
    if (tensor.size(dim) == 1) return true;
    const bool next = tensor.stride(dim) == expected;
    expected *= tensor.size(dim);
    return next;
  };
  bool all = follows(1);
  for (int64_t dim = tensor.dim() - 1; dim > 1; --dim) all = follows(dim) && all;
  return follows(0) && all;
}

/// Whether the operators walk over this tensor in channels_last order. A tensor that is both counts as contiguous.
inline bool is_channels_last(const Tensor& tensor) {
  return !tensor.is_contiguous() && has_channels_last_strides(tensor);
}

inline MemoryFormat memory_format(size_t dims, bool channels_last) {
  if (!channels_last) return MemoryFormat::Contiguous;
  return dims == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
}

/// The tensor in the given memory order: itself if it has it, else a copy.
inline Tensor in_order(const Tensor& tensor, bool channels_last) {
  if (channels_last ? has_channels_last_strides(tensor) : tensor.is_contiguous()) return tensor;
  return torch::stable::contiguous(tensor, memory_format(static_cast<size_t>(tensor.dim()), channels_last));
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype,
                         bool channels_last = false) {
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt,
                              memory_format(sizes.size(), channels_last));
}

/// A new tensor of the same sizes and dtype.
inline Tensor new_like(const Tensor& like, bool channels_last) {
  const auto sizes = like.sizes();
  return new_tensor(like, std::vector<int64_t>(sizes.begin(), sizes.end()), like.scalar_type(), channels_last);
}

/// Memory for a kernel's own use.
inline Tensor new_workspace(const Tensor& like, size_t bytes) {
  // Eight bytes per element, so that the memory suits every type that a kernel puts there.
  return new_tensor(like, {static_cast<int64_t>((bytes + 7) / 8)}, ScalarType::Long);
}

/// The dtype of sums over values of this dtype.
inline ScalarType sum_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

/// Which picture of `images` each window is of; without an index, of the only one. On the CPU an index out of range
/// raises; a GPU's values are not at hand without waiting for them.
inline std::optional<Tensor> check_image_index(const std::optional<Tensor>& image_index, const Tensor& images,
                                               const char* images_argument, int64_t windows) {
  if (!image_index) {
    STD_TORCH_CHECK(images.size(0) == 1 || windows == 0, "image_index is needed where ", images_argument, " has ",
                    images.size(0), " pictures");
    return std::nullopt;
  }
  check_dims(*image_index, "image_index", 1);
  check_size(*image_index, "image_index", 0, windows);
  check_int64(*image_index, "image_index");
  check_same_device(*image_index, "image_index", images, images_argument);
  Tensor index = in_order(*image_index, false);
  if (index.is_cpu()) {
    const int64_t* values = index.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < windows; ++i) {
      STD_TORCH_CHECK(values[i] >= 0 && values[i] < images.size(0), "image_index should be at least 0 and below ",
                      images.size(0), ", got ", values[i]);
    }
  }
  return index;
}

/// Weights are finite and at least 0. On the CPU others raise; a GPU's values are not at hand without waiting for them.
inline void check_weights(const Tensor& weights) {
  if (!weights.is_cpu()) return;
  const Tensor wide = in_order(torch::stable::to(weights, ScalarType::Double), false);
  const double* values = wide.const_data_ptr<double>();
  for (int64_t i = 0; i < wide.numel(); ++i) {
    STD_TORCH_CHECK(values[i] >= 0 && std::isfinite(values[i]), "weights should be finite and at least 0, got ",
                    values[i]);
  }
}

/// Of pictures [N, C, H, W] or volumes [N, C, D, H, W].
inline Layout layout_of(const Tensor& tensor, bool channels_last) {
  const int64_t channels = tensor.size(1), dims = tensor.dim();
  return {channels_last ? 1 : channels, tensor.size(dims - 2), tensor.size(dims - 1), channels_last ? channels : 1,
          dims == 5 ? tensor.size(2) : 1};
}

}  // namespace fastviz
