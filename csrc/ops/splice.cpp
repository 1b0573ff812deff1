#include "tensors.h"

namespace fastviz {
namespace {

Tensor check_origin(const Tensor& origin, const char* argument, const Tensor& clean, int64_t windows) {
  check_dims(origin, argument, 2);
  check_size(origin, argument, 0, windows);
  check_size(origin, argument, 1, 2);
  check_int64(origin, argument);
  check_same_device(origin, argument, clean, "clean");
  return in_order(origin, false);
}

Tensor splice(const Tensor& clean, const Tensor& dirty, const Tensor& dirty_origin, const Tensor& window_origin,
              const std::vector<int64_t>& window_size, const std::optional<Tensor>& image_index, double pad_value) {
  check_dims(clean, "clean", 4);
  check_dims(dirty, "dirty", 4);
  check_size(dirty, "dirty", 1, clean.size(1));
  check_same_dtype(dirty, "dirty", clean, "clean");
  check_same_device(dirty, "dirty", clean, "clean");
  STD_TORCH_CHECK(window_size.size() == 2 && window_size[0] >= 0 && window_size[1] >= 0,
                  "window_size should be a height and a width of at least 0");
  const int64_t windows = dirty.size(0);
  const Tensor crops_at = check_origin(dirty_origin, "dirty_origin", clean, windows);
  const Tensor windows_at = check_origin(window_origin, "window_origin", clean, windows);
  const std::optional<Tensor> index = check_image_index(image_index, clean, "clean", windows);
  const bool channels_last = is_channels_last(clean);
  const Tensor maps = in_order(clean, channels_last);
  const Tensor crops = in_order(dirty, channels_last);
  Tensor output =
      new_tensor(clean, {windows, clean.size(1), window_size[0], window_size[1]}, clean.scalar_type(), channels_last);
  Splice arguments{};
  arguments.dtype = dtype_of(clean, "clean");
  arguments.layout = layout_of(clean, channels_last);
  arguments.dirty_rows = dirty.size(2);
  arguments.dirty_columns = dirty.size(3);
  arguments.window_rows = window_size[0];
  arguments.window_columns = window_size[1];
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
