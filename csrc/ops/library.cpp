// The operators of fastviz, all of them. `fastviz/ops` explains each; underscored ones are backward passes and
// parts.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastviz, m) {
  m.def("occlude(Tensor images, Tensor boxes, Tensor? image_index, Tensor? fill, float fill_value) -> Tensor");
  m.def("_occlude_backward(Tensor grad, Tensor boxes, Tensor order, Tensor offsets, bool inside) -> Tensor");

  m.def(
      "splice(Tensor clean, Tensor dirty, Tensor dirty_origin, Tensor window_origin, int[] window_size, "
      "Tensor? image_index, float pad_value) -> Tensor");

  m.def("guided_relu(Tensor x, str rule, float? upper, bool with_mask) -> (Tensor, Tensor)");
  m.def("_guided_relu_in_place(Tensor(a!) x, str rule, float? upper, bool with_mask) -> Tensor");
  m.def("_guided_relu_backward(Tensor grad, Tensor mask, str rule, bool channels_last) -> Tensor");

  m.def("total_variation(Tensor x, str norm, float beta, bool crop, bool mean) -> Tensor");
  m.def("_total_variation_backward(Tensor grad, Tensor x, str norm, float beta, bool crop, bool mean) -> Tensor");

  m.def("gram(Tensor features, str normalize) -> Tensor");
  m.def("gram_loss(Tensor features, Tensor target, str normalize) -> (Tensor, Tensor)");

  m.def("patch_search(Tensor sample, Tensor neighbourhood, Tensor mask, Tensor weights) -> Tensor");
  m.def(
      "_grow_texture(Tensor(a!) values, Tensor(b!) filled, Tensor(c!) sources, Tensor places, Tensor chances, "
      "Tensor sample, Tensor? usable, Tensor weights, float epsilon, float limit) -> ()");

  m.def("_fill_in(Tensor(a!) values, Tensor removed, float accuracy, int most_steps) -> Tensor");

  m.def("_winograd_tiles(Tensor x, int top, int left, int tile_rows, int tile_columns, int begin, int end) -> Tensor");
  m.def(
      "_winograd_maps(Tensor(a!) output, Tensor product, Tensor? bias, Tensor? other, bool rectify, int begin) -> ()");

  m.def("_instructions() -> (int, int)");
}
