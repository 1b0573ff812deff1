#include "tensors.h"

namespace fastviz {
namespace {

/// Boxes [P, 2 * axes], of as many axes as the images have, or of fewer: of the last ones. Gives their number.
int64_t check_boxes(const Tensor& boxes, const Tensor& images) {
  check_dims(boxes, "boxes", 2);
  const int64_t sides = boxes.size(1), most = images.dim() - 2;
  STD_TORCH_CHECK(sides >= 2 && sides <= 2 * most && sides % 2 == 0,
                  "boxes should have 2 elements for each of at most ", most, " axes in dimension 1, got ", sides);
  check_int64(boxes, "boxes");
  check_same_device(boxes, "boxes", images, "images");
  return sides / 2;
}

std::vector<int64_t> sizes_of(int64_t count, const Tensor& images) {
  const auto sizes = images.sizes();
  std::vector<int64_t> result(sizes.begin(), sizes.end());
  result[0] = count;
  return result;
}

Tensor occlude(const Tensor& images, const Tensor& boxes, const std::optional<Tensor>& image_index,
               const std::optional<Tensor>& fill, double fill_value) {
  check_pictures(images, "images");
  const int64_t axes = check_boxes(boxes, images);
  const int64_t windows = boxes.size(0);
  const std::optional<Tensor> index = check_image_index(image_index, images, "images", windows);
  const bool channels_last = is_channels_last(images);
  const Tensor input = in_order(images, channels_last);
  const Tensor box = in_order(boxes, false);
  std::optional<Tensor> filling;
  if (fill) {
    check_dims(*fill, "fill", images.dim());
    check_same_dtype(*fill, "fill", images, "images");
    check_same_device(*fill, "fill", images, "images");
    STD_TORCH_CHECK(fill->size(0) == 1 || fill->size(0) == images.size(0), "fill should have 1 or ", images.size(0),
                    " pictures, got ", fill->size(0));
    for (int64_t dim = 1; dim < images.dim(); ++dim) check_size(*fill, "fill", dim, images.size(dim));
    filling = in_order(*fill, channels_last);
  }
  Tensor output = new_tensor(images, sizes_of(windows, images), images.scalar_type(), channels_last);
  Occlude arguments{};
  arguments.dtype = dtype_of(images, "images");
  arguments.layout = layout_of(images, channels_last);
  arguments.images = images.size(0);
  arguments.windows = windows;
  arguments.input = input.const_data_ptr();
  arguments.boxes = box.const_data_ptr<int64_t>();
  arguments.image_index = index ? index->const_data_ptr<int64_t>() : nullptr;
  arguments.fill = filling ? filling->const_data_ptr() : nullptr;
  arguments.fill_images = filling ? filling->size(0) : 1;
  arguments.fill_value = fill_value;
  arguments.output = output.mutable_data_ptr();
  arguments.axes = axes;
  if (output.numel() > 0) launch(FASTVIZ_KERNEL(occlude), images, arguments);
  return output;
}

/// Whether `order` has windows, and `offsets` parts of it. A GPU's values are not at hand without waiting for them.
void check_parts(const Tensor& order, const Tensor& offsets) {
  const int64_t* windows = order.const_data_ptr<int64_t>();
  const int64_t* parts = offsets.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < order.size(0); ++i) {
    STD_TORCH_CHECK(windows[i] >= 0 && windows[i] < order.size(0), "order should be at least 0 and below ",
                    order.size(0), ", got ", windows[i]);
  }
  for (int64_t i = 0; i < offsets.size(0); ++i) {
    STD_TORCH_CHECK(parts[i] >= (i > 0 ? parts[i - 1] : 0) && parts[i] <= order.size(0),
                    "offsets should rise from 0 to at most ", order.size(0), ", got ", parts[i]);
  }
}

Tensor occlude_backward(const Tensor& grad, const Tensor& boxes, const Tensor& order, const Tensor& offsets,
                        bool inside) {
  check_pictures(grad, "grad");
  const int64_t axes = check_boxes(boxes, grad);
  check_size(boxes, "boxes", 0, grad.size(0));
  check_dims(order, "order", 1);
  check_size(order, "order", 0, grad.size(0));
  check_int64(order, "order");
  check_same_device(order, "order", grad, "grad");
  check_dims(offsets, "offsets", 1);
  STD_TORCH_CHECK(offsets.size(0) > 0, "offsets should have one element more than there are images, got none");
  check_int64(offsets, "offsets");
  check_same_device(offsets, "offsets", grad, "grad");
  const bool channels_last = is_channels_last(grad);
  const Tensor values = in_order(grad, channels_last);
  const Tensor box = in_order(boxes, false);
  const Tensor sorted = in_order(order, false);
  const Tensor parts = in_order(offsets, false);
  if (grad.is_cpu()) check_parts(sorted, parts);
  const int64_t images = offsets.size(0) - 1;
  Tensor output = new_tensor(grad, sizes_of(images, grad), grad.scalar_type(), channels_last);
  OccludeBackward arguments{};
  arguments.dtype = dtype_of(grad, "grad");
  arguments.layout = layout_of(grad, channels_last);
  arguments.images = images;
  arguments.inside = inside;
  arguments.grad = values.const_data_ptr();
  arguments.boxes = box.const_data_ptr<int64_t>();
  arguments.order = sorted.const_data_ptr<int64_t>();
  arguments.offsets = parts.const_data_ptr<int64_t>();
  arguments.output = output.mutable_data_ptr();
  arguments.axes = axes;
  if (output.numel() > 0) launch(FASTVIZ_KERNEL(occlude_backward), grad, arguments);
  return output;
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) {
  m.impl("occlude", TORCH_BOX(&fastviz::occlude));
  m.impl("_occlude_backward", TORCH_BOX(&fastviz::occlude_backward));
}
