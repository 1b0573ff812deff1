#include "tensors.h"

// On the CPU only: cuDNN has transforms of its own.
#ifndef FASTVIZ_CUDA

namespace fastviz {
namespace {

void check_maps(const Tensor& tensor, const char* argument) {
  check_dims(tensor, argument, 4);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, argument, " should be float32, got another dtype");
}

Tensor winograd_tiles(const Tensor& x, int64_t top, int64_t left, int64_t tile_rows, int64_t tile_columns,
                      int64_t begin, int64_t end) {
  check_maps(x, "x");
  // Tiles begin every 4 rows and columns: beyond these numbers they would see nothing of x, and sums could overflow.
  constexpr int64_t most_padding = 1 << 20;
  STD_TORCH_CHECK(top >= 0 && top <= most_padding && left >= 0 && left <= most_padding, "padding should be from 0 to ",
                  most_padding, ", got ", top, " and ", left);
  STD_TORCH_CHECK(tile_rows <= x.size(2) + 2 * most_padding && tile_columns <= x.size(3) + 2 * most_padding,
                  "tiles should be at most one per row and column of x and its padding, got ", tile_rows, " and ",
                  tile_columns);
  STD_TORCH_CHECK(
      tile_rows > 0 && tile_columns > 0 && begin >= 0 && begin <= end && end <= x.size(0) * tile_rows * tile_columns,
      "begin and end should be among the ", x.size(0) * tile_rows * tile_columns, " tiles, got ", begin, " and ", end);
  const Tensor maps = in_order(x, true);
  WinogradTiles arguments{};
  arguments.channels = x.size(1);
  arguments.rows = x.size(2);
  arguments.columns = x.size(3);
  arguments.top = top;
  arguments.left = left;
  arguments.tile_rows = tile_rows;
  arguments.tile_columns = tile_columns;
  arguments.begin = begin;
  arguments.end = end;
  Tensor output = new_tensor(x, {36, end - begin, arguments.channels}, ScalarType::Float);
  arguments.input = static_cast<const float*>(maps.const_data_ptr());
  arguments.output = static_cast<float*>(output.mutable_data_ptr());
  launch(FASTVIZ_KERNEL(winograd_tiles), x, arguments);
  return output;
}

void winograd_maps(Tensor output, const Tensor& product, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& other, bool rectify, int64_t begin) {
  check_maps(output, "output");
  STD_TORCH_CHECK(has_channels_last_strides(output), "output should be channels_last: it is written to");
  check_dims(product, "product", 3);
  check_size(product, "product", 0, 36);
  check_size(product, "product", 2, output.size(1));
  check_same_dtype(product, "product", output, "output");
  WinogradMaps arguments{};
  arguments.channels = output.size(1);
  arguments.rows = output.size(2);
  arguments.columns = output.size(3);
  arguments.tile_rows = (arguments.rows + 3) / 4;
  arguments.tile_columns = (arguments.columns + 3) / 4;
  arguments.begin = begin;
  const int64_t tiles = output.size(0) * arguments.tile_rows * arguments.tile_columns;
  STD_TORCH_CHECK(begin >= 0 && product.size(1) <= tiles && begin <= tiles - product.size(1),
                  "product should be of tiles among the ", tiles, ", got ", product.size(1), " from ", begin);
  arguments.end = begin + product.size(1);
  arguments.rectify = rectify;
  const Tensor products = in_order(product, false);
  std::optional<Tensor> shift, sum;
  if (bias) {
    check_dims(*bias, "bias", 1);
    check_size(*bias, "bias", 0, arguments.channels);
    check_same_dtype(*bias, "bias", output, "output");
    shift = in_order(*bias, false);
    arguments.bias = static_cast<const float*>(shift->const_data_ptr());
  }
  if (other) {
    check_maps(*other, "other");
    for (int64_t dim = 0; dim < 4; ++dim) check_size(*other, "other", dim, output.size(dim));
    sum = in_order(*other, true);
    arguments.other = static_cast<const float*>(sum->const_data_ptr());
  }
  arguments.product = static_cast<const float*>(products.const_data_ptr());
  arguments.output = static_cast<float*>(output.mutable_data_ptr());
  launch(FASTVIZ_KERNEL(winograd_maps), output, arguments);
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) {
  m.impl("_winograd_tiles", TORCH_BOX(&fastviz::winograd_tiles));
  m.impl("_winograd_maps", TORCH_BOX(&fastviz::winograd_maps));
}

#endif
