#include <algorithm>

#include "tensors.h"

namespace fastviz {
namespace {

/// Origins [P, axes], of as many axes as the maps have, or of fewer: of the last ones.
Tensor check_origin(const Tensor& origin, const char* argument, const Tensor& clean, int64_t windows) {
  check_dims(origin, argument, 2);
  check_size(origin, argument, 0, windows);
  STD_TORCH_CHECK(origin.size(1) >= 1 && origin.size(1) <= clean.dim() - 2, argument, " should have at most ",
                  clean.dim() - 2, " elements in dimension 1, got ", origin.size(1));
  check_int64(origin, argument);
  check_same_device(origin, argument, clean, "clean");
  return in_order(origin, false);
}

Tensor splice(const Tensor& clean, const Tensor& dirty, const Tensor& dirty_origin, const Tensor& window_origin,
              const std::vector<int64_t>& window_size, const std::optional<Tensor>& image_index, double pad_value) {
  check_pictures(clean, "clean");
  check_dims(dirty, "dirty", clean.dim());
  check_size(dirty, "dirty", 1, clean.size(1));
  check_same_dtype(dirty, "dirty", clean, "clean");
  check_same_device(dirty, "dirty", clean, "clean");
  const bool fits = static_cast<int64_t>(window_size.size()) == clean.dim() - 2;
  STD_TORCH_CHECK(fits && std::all_of(window_size.begin(), window_size.end(), [](int64_t side) { return side >= 0; }),
                  "window_size should be ", clean.dim() - 2, " numbers of at least 0");
  const int64_t windows = dirty.size(0);
  const Tensor crops_at = check_origin(dirty_origin, "dirty_origin", clean, windows);
  const Tensor windows_at = check_origin(window_origin, "window_origin", clean, windows);
  check_size(windows_at, "window_origin", 1, crops_at.size(1));
  const std::optional<Tensor> index = check_image_index(image_index, clean, "clean", windows);
  const bool channels_last = is_channels_last(clean);
  const Tensor maps = in_order(clean, channels_last);
  const Tensor crops = in_order(dirty, channels_last);
  std::vector<int64_t> sizes = {windows, clean.size(1)};
  sizes.insert(sizes.end(), window_size.begin(), window_size.end());
  Tensor output = new_tensor(clean, sizes, clean.scalar_type(), channels_last);
  Splice arguments{};
  arguments.dtype = dtype_of(clean, "clean");
  arguments.layout = layout_of(clean, channels_last);
  const Layout crop = layout_of(dirty, channels_last), window = layout_of(output, channels_last);
  arguments.axes = crops_at.size(1);
  arguments.dirty_slices = crop.slices;
  arguments.dirty_rows = crop.rows;
  arguments.dirty_columns = crop.columns;
  arguments.window_slices = window.slices;
  arguments.window_rows = window.rows;
  arguments.window_columns = window.columns;
  arguments.images = clean.size(0);
  arguments.windows = windows;
  arguments.clean = maps.const_data_ptr();
  arguments.dirty = crops.const_data_ptr();
  arguments.dirty_origin = crops_at.const_data_ptr<int64_t>();
  arguments.window_origin = windows_at.const_data_ptr<int64_t>();
  arguments.image_index = index ? index->const_data_ptr<int64_t>() : nullptr;
  arguments.pad_value = pad_value;
  arguments.output = output.mutable_data_ptr();
  if (output.numel() > 0) launch(FASTVIZ_KERNEL(splice), clean, arguments);
  return output;
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) { m.impl("splice", TORCH_BOX(&fastviz::splice)); }
