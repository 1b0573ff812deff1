// Where the launchers are tested: the CPU with several numbers of threads, and CUDA, real or emulated. Values are
// doubles in the tests and are rounded to the element type on their way to memory.

#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../kernels/kernels.h"

namespace fastviz {
namespace test {

/// One way of running a launcher. Backends of one family give the same bits.
struct Backend {
  std::string name;
  bool cuda;
  Parallel parallel;  // of a CPU backend
  /// Calls the launcher with a stream and waits for it; of a CUDA backend.
  std::function<void(const std::function<void(Stream)>&)> on_stream;
};

const std::vector<Backend>& backends();

// One of cuda_backend.cpp, emulation_backend.cpp and no_cuda_backend.cpp gives these.

/// The ways of running the CUDA launchers.
std::vector<Backend> cuda_backends();
/// Whether this program tests the CPU launchers.
bool cpu_too();
/// Memory of the device, zero bytes allowed; exactly as long as asked for, so that memory checkers see every overrun.
void* device_allocate(size_t bytes);
void device_free(void* memory);
void device_upload(void* device, const void* host, size_t bytes);
void device_download(void* host, const void* device, size_t bytes);

size_t bytes_of(Dtype dtype);
const char* name_of(Dtype dtype);
inline Dtype sum_dtype(Dtype dtype) { return dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32; }
constexpr Dtype all_dtypes[] = {Dtype::float32, Dtype::float64, Dtype::float16, Dtype::bfloat16};

/// Values as they stand in memory, and back.
std::vector<uint8_t> encode(Dtype dtype, const std::vector<double>& values);
std::vector<double> decode(Dtype dtype, const std::vector<uint8_t>& bytes);
/// Values rounded to the element type.
inline std::vector<double> rounded(Dtype dtype, const std::vector<double>& values) {
  return decode(dtype, encode(dtype, values));
}

/// Reproducible values in [-2, 2], an eighth of them 0 or equal to the value before.
std::vector<double> random_values(int64_t count, uint64_t seed);

/// Bytes on a backend, `shift` bytes past an address that is a multiple of 16.
class Buffer {
 public:
  Buffer(const Backend& backend, const std::vector<uint8_t>& bytes, size_t shift = 0);
  /// Unwritten memory: every byte 255, which is NaN in every float type.
  Buffer(const Backend& backend, size_t bytes, size_t shift = 0)
      : Buffer(backend, std::vector<uint8_t>(bytes, 255), shift) {}
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return memory_ + shift_; }
  std::vector<uint8_t> read() const;

 private:
  bool cuda_;
  size_t bytes_, shift_;
  uint8_t* memory_;
};

/// A list of int64 on a backend.
class Indices {
 public:
  Indices(const Backend& backend, const std::vector<int64_t>& values) : buffer_(backend, as_bytes(values)) {}
  const int64_t* data() const { return static_cast<const int64_t*>(buffer_.data()); }

 private:
  static std::vector<uint8_t> as_bytes(const std::vector<int64_t>& values) {
    std::vector<uint8_t> bytes(values.size() * sizeof(int64_t));
    if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }
  Buffer buffer_;
};

/// Runs a launcher where the backend runs it.
template <typename Arguments>
void run(const Backend& backend, void (*cpu)(const Parallel&, const Arguments&), void (*cuda)(Stream, const Arguments&),
         const Arguments& arguments) {
  if (backend.cuda) {
    backend.on_stream([&](Stream stream) { cuda(stream, arguments); });
  } else {
    cpu(backend.parallel, arguments);
  }
}

/// Compares each backend's bytes with those of the first one of its family.
class SameBits {
 public:
  void check(const Backend& backend, const std::vector<uint8_t>& bytes);

 private:
  bool seen_[2] = {false, false};
  std::vector<uint8_t> first_[2];
};

/// Whether the values are equal (NaN being equal to NaN), or within absolute + relative * |expected|.
bool equal(const std::vector<double>& values, const std::vector<double>& expected);
bool close(const std::vector<double>& values, const std::vector<double>& expected, double absolute, double relative);

/// Memory order of pictures of a test.
inline Layout layout_of(bool channels_last, int64_t channels, int64_t rows, int64_t columns) {
  return channels_last ? Layout{1, rows, columns, channels} : Layout{channels, rows, columns, 1};
}

}  // namespace test
}  // namespace fastviz
