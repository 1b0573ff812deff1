#include <cmath>

#include "backends.h"
#include "harness.h"

using namespace fastviz;
using namespace fastviz::test;

namespace {

const std::vector<int64_t> counts = {0,   1,   2,   7,   8,   9,    31,   32,   33,   63,   64,   65,
                                     127, 255, 256, 257, 511, 1024, 1025, 2049, 4097, 8200, 70001};

/// Random values, with NaN, infinities, both zeros and the smallest numbers among the first ones.
std::vector<double> values_for(Dtype dtype, int64_t count, uint64_t seed) {
  std::vector<double> values = random_values(count, seed);
  const double smallest = dtype == Dtype::float64 ? 5e-324 : (dtype == Dtype::float16 ? 0x1p-24 : 0x1p-133);
  const double special[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0, smallest, -smallest, -NAN};
  for (size_t i = 0; i < 8 && 3 * i < values.size(); ++i) values[3 * i] = special[i];
  return rounded(dtype, values);
}

template <typename Condition>
std::vector<uint8_t> bits_where(const std::vector<double>& values, const Condition& condition) {
  std::vector<uint8_t> mask((values.size() + 7) / 8);
  for (size_t i = 0; i < values.size(); ++i) {
    if (condition(values[i])) mask[i / 8] = static_cast<uint8_t>(mask[i / 8] | 1u << (i % 8));
  }
  return mask;
}

std::vector<uint8_t> bits_of(const std::vector<double>& values) {
  return bits_where(values, [](double value) { return !(value <= 0); });
}

}  // namespace

TEST(guided_relu) {
  for (Dtype dtype : all_dtypes) {
    for (int64_t count : counts) {
      for (int variant = 0; variant < 4; ++variant) {
        const bool with_mask = variant != 1;
        const bool in_place = variant == 3;
        const size_t shift = variant == 2 ? bytes_of(dtype) : 0;
        const std::vector<double> input = values_for(dtype, count, 9);
        std::vector<double> expected = input;
        for (double& value : expected) value = value <= 0 ? 0 : value;
        const std::vector<uint8_t> mask = bits_of(input);
        for (const Backend& backend : backends()) {
          describe(backend.name, " ", name_of(dtype), " count ", count, " variant ", variant);
          const Buffer input_buffer(backend, encode(dtype, input), shift);
          const Buffer other(backend, input.size() * bytes_of(dtype), shift);
          const Buffer& output = in_place ? input_buffer : other;
          const Buffer mask_buffer(backend, mask.size(), shift ? 1 : 0);
          GuidedRelu a{};
          a.dtype = dtype;
          a.rule = ReluRule::guided;
          a.count = count;
          a.input = input_buffer.data();
          a.output = output.data();
          a.mask = with_mask ? static_cast<uint8_t*>(mask_buffer.data()) : nullptr;
          run(backend, guided_relu_cpu, guided_relu_cuda, a);
          CHECK(equal(decode(dtype, output.read()), expected));
          if (with_mask) CHECK(mask_buffer.read() == mask);
        }
      }
    }
  }
}

TEST(guided_relu_bounded) {
  const double upper = 0.5;
  for (Dtype dtype : all_dtypes) {
    for (int64_t count : counts) {
      for (ReluRule rule : {ReluRule::plain, ReluRule::guided, ReluRule::deconvnet}) {
        std::vector<double> input = values_for(dtype, count, 12);
        for (size_t i = 1; i < input.size(); i += 5) input[i] = upper;
        std::vector<double> expected = input;
        for (double& value : expected) value = value <= 0 ? 0 : (value >= upper ? upper : value);
        const bool open_below = rule == ReluRule::deconvnet;
        const std::vector<uint8_t> mask =
            bits_where(input, [&](double value) { return (open_below || !(value <= 0)) && !(value >= upper); });
        for (const Backend& backend : backends()) {
          describe(backend.name, " ", name_of(dtype), " count ", count, " rule ", static_cast<int>(rule));
          const Buffer values(backend, encode(dtype, input), 0);
          const Buffer mask_buffer(backend, mask.size(), 0);
          const GuidedRelu a{dtype, rule,          true,          upper,
                             count, values.data(), values.data(), static_cast<uint8_t*>(mask_buffer.data())};
          run(backend, guided_relu_cpu, guided_relu_cuda, a);
          CHECK(equal(decode(dtype, values.read()), expected));
          CHECK(mask_buffer.read() == mask);
        }
      }
    }
  }
}

TEST(guided_relu_backward) {
  for (Dtype dtype : all_dtypes) {
    for (int64_t count : counts) {
      for (ReluRule rule : {ReluRule::plain, ReluRule::guided, ReluRule::deconvnet}) {
        for (int variant = 0; variant < 3; ++variant) {
          const size_t shift = variant == 1 ? bytes_of(dtype) : 0;
          // The rule deconvnet has a mask only behind a bound.
          const bool use_mask = rule != ReluRule::deconvnet || variant == 2;
          const std::vector<double> grad = values_for(dtype, count, 10);
          const std::vector<uint8_t> mask = bits_of(random_values(count, 11));
          std::vector<double> expected = grad;
          for (size_t i = 0; i < expected.size(); ++i) {
            const bool bit = !use_mask || (mask[i / 8] >> (i % 8) & 1);
            if (!bit || (rule != ReluRule::plain && grad[i] <= 0)) expected[i] = 0;
          }
          for (const Backend& backend : backends()) {
            describe(backend.name, " ", name_of(dtype), " count ", count, " rule ", static_cast<int>(rule), " shift ",
                     shift);
            const Buffer grad_buffer(backend, encode(dtype, grad), shift);
            const Buffer mask_buffer(backend, mask, shift ? 1 : 0);
            const Buffer output(backend, grad.size() * bytes_of(dtype), shift);
            const GuidedReluBackward a{dtype,
                                       rule,
                                       count,
                                       grad_buffer.data(),
                                       use_mask ? static_cast<const uint8_t*>(mask_buffer.data()) : nullptr,
                                       output.data()};
            run(backend, guided_relu_backward_cpu, guided_relu_backward_cuda, a);
            CHECK(equal(decode(dtype, output.read()), expected));
          }
        }
      }
    }
  }
}
