#include <algorithm>
#include <cmath>

#include "backends.h"
#include "harness.h"

using namespace fastviz;
using namespace fastviz::test;

namespace {

struct Shape {
  int64_t images, channels, places;
};

/// Checks gram (targets = 0) or gram_loss.
void check_gram(const Shape& shape, bool channels_last, Dtype dtype, int64_t targets, size_t shift) {
  const int64_t N = shape.images, C = shape.channels, L = shape.places;
  const int64_t channel_stride = channels_last ? 1 : L, place_stride = channels_last ? C : 1;
  const double scale = 0.25;
  const std::vector<double> features = rounded(dtype, random_values(N * C * L, 14));
  const std::vector<double> target = rounded(dtype, random_values(targets * C * C, 15));
  std::vector<double> expected(static_cast<size_t>(N * C * C)), sizes(expected.size());
  std::vector<double> losses(static_cast<size_t>(N)), loss_sizes(losses.size());
  for (int64_t n = 0; n < N; ++n) {
    const auto product = [&](int64_t i, int64_t j, bool size) {
      double sum = 0;
      for (int64_t l = 0; l < L; ++l) {
        const double* f = &features[static_cast<size_t>(n * C * L + l * place_stride)];
        const double term = f[i * channel_stride] * f[j * channel_stride];
        sum += size ? std::fabs(term) : term;
      }
      return scale * sum;
    };
    const auto wanted = [&](int64_t i, int64_t j) {
      return targets ? target[static_cast<size_t>(((targets == 1 ? 0 : n) * C + i) * C + j)] : 0;
    };
    for (int64_t i = 0; i < C; ++i) {
      for (int64_t j = i; j < C; ++j) {
        const double value = product(i, j, false);
        const double upper = value - wanted(i, j), lower = value - wanted(j, i);
        // What sums of rounded terms may be off by is a fraction of the sum of their sizes.
        const double size = product(i, j, true) + std::fabs(wanted(i, j)) + std::fabs(wanted(j, i));
        for (const auto& [r, c] : {std::pair(i, j), std::pair(j, i)}) {
          expected[static_cast<size_t>((n * C + r) * C + c)] = targets ? upper + lower : value;
          sizes[static_cast<size_t>((n * C + r) * C + c)] = size;
        }
        losses[static_cast<size_t>(n)] += upper * upper + (i == j ? 0 : lower * lower);
        loss_sizes[static_cast<size_t>(n)] += 2 * size * size;
      }
    }
  }

  SameBits same_output, same_loss;
  for (const Backend& backend : backends()) {
    describe(backend.name, " ", name_of(dtype), " ", N, "x", C, "x", L, channels_last ? " channels last" : "",
             " targets ", targets, " shift ", shift);
    const Buffer feature_buffer(backend, encode(dtype, features), shift), target_buffer(backend, encode(dtype, target));
    const Buffer output(backend, expected.size() * bytes_of(dtype));
    const Buffer loss(backend, losses.size() * bytes_of(sum_dtype(dtype)));
    Gram a{};
    a.dtype = dtype;
    a.images = N;
    a.channels = C;
    a.places = L;
    a.channel_stride = channel_stride;
    a.place_stride = place_stride;
    a.scale = scale;
    a.features = feature_buffer.data();
    a.target = targets ? target_buffer.data() : nullptr;
    a.target_images = targets;
    a.output = output.data();
    a.loss = targets ? loss.data() : nullptr;
    const size_t bytes = backend.cuda ? gram_cuda_workspace(a) : gram_cpu_workspace(a);
    const Buffer workspace(backend, bytes);
    a.workspace = workspace.data();
    run(backend, gram_cpu, gram_cuda, a);

    const std::vector<uint8_t> output_bytes = output.read();
    same_output.check(backend, output_bytes);
    const std::vector<double> values = decode(dtype, output_bytes);
    const double sum_error = dtype == Dtype::float64 ? 1e-14 : 2e-6;
    const double rounding = dtype == Dtype::float16 ? 1e-3 : (dtype == Dtype::bfloat16 ? 8e-3 : 0);
    bool good = true, symmetric = true;
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t i = 0; i < C; ++i) {
        for (int64_t j = 0; j < C; ++j) {
          const size_t at = static_cast<size_t>((n * C + i) * C + j),
                       mirrored = static_cast<size_t>((n * C + j) * C + i);
          good = good &&
                 std::fabs(values[at] - expected[at]) <= sum_error * sizes[at] + rounding * std::fabs(expected[at]);
          symmetric = symmetric && values[at] == values[mirrored];
        }
      }
    }
    CHECK(good);
    CHECK(symmetric);
    if (!targets) continue;
    const std::vector<uint8_t> loss_bytes = loss.read();
    same_loss.check(backend, loss_bytes);
    const std::vector<double> loss_values = decode(sum_dtype(dtype), loss_bytes);
    for (size_t n = 0; n < losses.size(); ++n) {
      CHECK(std::fabs(loss_values[n] - losses[n]) <= 10 * sum_error * loss_sizes[n]);
    }
  }
}

}  // namespace

TEST(gram_shapes) {
  const std::vector<Shape> shapes = {{0, 3, 4},   {1, 0, 4},    {2, 3, 0},    {1, 1, 1},   {2, 3, 5},
                                     {1, 8, 16},  {3, 17, 33},  {1, 64, 40},  {1, 65, 24}, {2, 33, 130},
                                     {1, 100, 7}, {1, 136, 48}, {1, 200, 35}, {1, 4, 1030}};
  for (const Shape& shape : shapes) {
    for (Dtype dtype : all_dtypes) {
      for (bool channels_last : {false, true}) check_gram(shape, channels_last, dtype, 0, 0);
    }
  }
}

TEST(gram_unaligned) {
  for (Dtype dtype : all_dtypes) {
    for (bool channels_last : {false, true}) check_gram({2, 72, 64}, channels_last, dtype, 0, bytes_of(dtype));
  }
}

TEST(gram_loss) {
  for (const Shape& shape : {Shape{0, 3, 4}, Shape{2, 0, 4}, Shape{2, 3, 0}, Shape{2, 1, 1}, Shape{2, 5, 40},
                             Shape{3, 33, 20}, Shape{2, 70, 72}, Shape{1, 130, 20}}) {
    for (Dtype dtype : all_dtypes) {
      for (bool channels_last : {false, true}) {
        check_gram(shape, channels_last, dtype, 1, 0);
        if (shape.images > 1) check_gram(shape, channels_last, dtype, shape.images, 0);
      }
    }
  }
}
