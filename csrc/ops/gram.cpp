#include <string>
#include <tuple>

#include "tensors.h"

namespace fastviz {
namespace {

double scale_of(const std::string& normalize, int64_t channels, int64_t places) {
  if (normalize == "none" || channels * places == 0) return 1;
  if (normalize == "hw") return 1.0 / static_cast<double>(places);
  STD_TORCH_CHECK(normalize == "chw", "normalize should be one of 'none', 'hw', 'chw', got '", normalize, "'");
  return 1.0 / static_cast<double>(channels * places);
}

/// The part that gram and gram_loss share. `target` and `loss` are null for gram.
Tensor run(const Tensor& features, const std::string& normalize, const Tensor* target, const Tensor* loss) {
  STD_TORCH_CHECK(features.dim() == 3 || features.dim() == 4,
                  "features should have shape [N, C, L] or [N, C, H, W], got ", features.dim(), " dimensions");
  const bool channels_last = is_channels_last(features);
  const Tensor input = in_order(features, channels_last);
  const int64_t images = features.size(0), channels = features.size(1);
  const int64_t places = features.dim() == 4 ? features.size(2) * features.size(3) : features.size(2);
  Tensor output = new_tensor(features, {images, channels, channels}, features.scalar_type());
  Gram arguments{};
  arguments.dtype = dtype_of(features, "features");
  arguments.images = images;
  arguments.channels = channels;
  arguments.places = places;
  arguments.channel_stride = channels_last ? 1 : places;
  arguments.place_stride = channels_last ? channels : 1;
  arguments.scale = scale_of(normalize, channels, places);
  arguments.features = input.const_data_ptr();
  arguments.target = target ? target->const_data_ptr() : nullptr;
  arguments.target_images = target ? target->size(0) : 1;
  arguments.output = output.mutable_data_ptr();
  arguments.loss = loss ? loss->mutable_data_ptr() : nullptr;
  const Tensor workspace = new_workspace(features, FASTVIZ_WORKSPACE(gram)(arguments));
  arguments.workspace = workspace.mutable_data_ptr();
  if (images > 0) launch(FASTVIZ_KERNEL(gram), features, arguments);
  return output;
}

Tensor gram(const Tensor& features, const std::string& normalize) { return run(features, normalize, nullptr, nullptr); }

std::tuple<Tensor, Tensor> gram_loss(const Tensor& features, const Tensor& target, const std::string& normalize) {
  STD_TORCH_CHECK(features.dim() >= 2, "features should have shape [N, C, L] or [N, C, H, W]");
  check_dims(target, "target", 3);
  check_same_dtype(target, "target", features, "features");
  check_same_device(target, "target", features, "features");
  STD_TORCH_CHECK(target.size(0) == 1 || target.size(0) == features.size(0), "target should have 1 or ",
                  features.size(0), " matrices, got ", target.size(0));
  check_size(target, "target", 1, features.size(1));
  check_size(target, "target", 2, features.size(1));
  const Tensor matrices = in_order(target, false);
  const Tensor loss = new_tensor(features, {features.size(0)}, sum_dtype(features));
  Tensor difference = run(features, normalize, &matrices, &loss);
  return {loss, difference};
}

}  // namespace
}  // namespace fastviz

STABLE_TORCH_LIBRARY_IMPL(fastviz, FASTVIZ_DEVICE, m) {
  m.impl("gram", TORCH_BOX(&fastviz::gram));
  m.impl("gram_loss", TORCH_BOX(&fastviz::gram_loss));
}
