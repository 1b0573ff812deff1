#include "backends.h"

#include <cmath>
#include <thread>

#include "harness.h"
#include "numbers.h"

namespace fastviz {
namespace test {

namespace {

/// Equal parts for a fixed number of threads, whatever the grain: results must not depend on it.
template <int THREADS>
void run_threads(int64_t begin, int64_t end, int64_t, Parallel::Body body, void* context) {
  std::vector<std::thread> threads;
  for (int i = 0; i < THREADS; ++i) {
    const int64_t first = begin + (end - begin) * i / THREADS;
    const int64_t last = begin + (end - begin) * (i + 1) / THREADS;
    if (first == last) continue;
    if (i + 1 == THREADS) {
      body(first, last, context);
    } else {
      threads.emplace_back(body, first, last, context);
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

const std::vector<Backend>& backends() {
  static const std::vector<Backend> all = [] {
    std::vector<Backend> list;
    if (cpu_too()) {
      list = {{"cpu, 1 thread", false, {run_threads<1>, 1}, {}},
              {"cpu, 2 threads", false, {run_threads<2>, 2}, {}},
              {"cpu, 7 threads", false, {run_threads<7>, 7}, {}}};
    }
    for (Backend& backend : cuda_backends()) list.push_back(std::move(backend));
    return list;
  }();
  return all;
}

size_t bytes_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return 4;
    case Dtype::float64:
      return 8;
    case Dtype::float16:
    case Dtype::bfloat16:
      return 2;
  }
  return 0;
}

const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return "float32";
    case Dtype::float64:
      return "float64";
    case Dtype::float16:
      return "float16";
    case Dtype::bfloat16:
      return "bfloat16";
  }
  return "";
}

std::vector<uint8_t> encode(Dtype dtype, const std::vector<double>& values) {
  const size_t size = bytes_of(dtype);
  std::vector<uint8_t> bytes(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) {
    const float narrow = static_cast<float>(values[i]);
    uint16_t half = 0;
    const void* source = &half;
    if (dtype == Dtype::float32) source = &narrow;
    if (dtype == Dtype::float64) source = &values[i];
    if (dtype == Dtype::float16) half = half_of_float(narrow);
    if (dtype == Dtype::bfloat16) half = bfloat_of_float(narrow);
    std::memcpy(&bytes[i * size], source, size);
  }
  return bytes;
}

std::vector<double> decode(Dtype dtype, const std::vector<uint8_t>& bytes) {
  const size_t size = bytes_of(dtype);
  std::vector<double> values(bytes.size() / size);
  for (size_t i = 0; i < values.size(); ++i) {
    float narrow = 0;
    uint16_t half = 0;
    void* target = &half;
    if (dtype == Dtype::float32) target = &narrow;
    if (dtype == Dtype::float64) target = &values[i];
    std::memcpy(target, &bytes[i * size], size);
    if (dtype == Dtype::float16) narrow = float_of_half(half);
    if (dtype == Dtype::bfloat16) narrow = float_of_bfloat(half);
    if (dtype != Dtype::float64) values[i] = static_cast<double>(narrow);
  }
  return values;
}

std::vector<double> random_values(int64_t count, uint64_t seed) {
  std::vector<double> values(static_cast<size_t>(count));
  uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
  for (size_t i = 0; i < values.size(); ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const uint64_t bits = state >> 33;
    values[i] = static_cast<double>(bits % 4001) / 1000 - 2;
    if (bits >> 20 & 1 && bits >> 21 & 1 && bits >> 22 & 1) values[i] = i > 0 && (bits >> 23 & 1) ? values[i - 1] : 0;
  }
  return values;
}

Buffer::Buffer(const Backend& backend, const std::vector<uint8_t>& bytes, size_t shift)
    : cuda_(backend.cuda), bytes_(bytes.size()), shift_(shift) {
  memory_ = static_cast<uint8_t*>(cuda_ ? device_allocate(bytes_ + shift_) : ::operator new(bytes_ + shift_));
  if (bytes.empty()) return;
  if (cuda_) {
    device_upload(data(), bytes.data(), bytes_);
  } else {
    std::memcpy(data(), bytes.data(), bytes_);
  }
}

Buffer::~Buffer() {
  if (cuda_) {
    device_free(memory_);
  } else {
    ::operator delete(memory_);
  }
}

std::vector<uint8_t> Buffer::read() const {
  std::vector<uint8_t> bytes(bytes_);
  if (bytes.empty()) return bytes;
  if (cuda_) {
    device_download(bytes.data(), data(), bytes_);
  } else {
    std::memcpy(bytes.data(), data(), bytes_);
  }
  return bytes;
}

void SameBits::check(const Backend& backend, const std::vector<uint8_t>& bytes) {
  if (!seen_[backend.cuda]) {
    first_[backend.cuda] = bytes;
    seen_[backend.cuda] = true;
  }
  CHECK(first_[backend.cuda] == bytes);
}

bool equal(const std::vector<double>& values, const std::vector<double>& expected) {
  return close(values, expected, 0, 0);
}

bool close(const std::vector<double>& values, const std::vector<double>& expected, double absolute, double relative) {
  if (values.size() != expected.size()) return false;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == expected[i] || (std::isnan(values[i]) && std::isnan(expected[i]))) continue;
    const double tolerance = absolute + relative * std::fabs(expected[i]);
    if (tolerance > 0 && std::fabs(values[i] - expected[i]) <= tolerance) continue;
    std::ostringstream text;
    text << " | value " << i << " is " << values[i] << ", expected " << expected[i];
    context() = context().substr(0, context().find(" | ")) + text.str();
    return false;
  }
  return true;
}

}  // namespace test
}  // namespace fastviz
