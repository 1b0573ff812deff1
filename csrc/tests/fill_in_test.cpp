#include <algorithm>
#include <cmath>
#include <memory>

#include "backends.h"
#include "harness.h"

using namespace fastviz;
using namespace fastviz::test;

namespace {

/// How far each removed pixel is from the weighted mean of its neighbours, at most.
double largest_miss(const FillIn& a) {
  double largest = 0;
  for (int64_t plane = 0; plane < a.pictures * a.channels; ++plane) {
    const bool* removed = a.removed + plane / a.channels * a.rows * a.columns;
    const double* values = a.values + plane * a.rows * a.columns;
    for (int64_t y = 0; y < a.rows; ++y) {
      for (int64_t x = 0; x < a.columns; ++x) {
        if (!removed[y * a.columns + x]) continue;
        double sum = 0, weights = 0;
        for (int64_t dy = -1; dy <= 1; ++dy) {
          for (int64_t dx = -1; dx <= 1; ++dx) {
            if ((dy == 0 && dx == 0) || y + dy < 0 || y + dy >= a.rows || x + dx < 0 || x + dx >= a.columns) continue;
            const double weight = dy != 0 && dx != 0 ? 1 : 2;
            sum += weight * values[(y + dy) * a.columns + x + dx];
            weights += weight;
          }
        }
        largest = std::max(largest, std::abs(sum / weights - values[y * a.columns + x]));
      }
    }
  }
  return largest;
}

}  // namespace

TEST(fill_in_shapes) {
  const int64_t shapes[][4] = {{1, 1, 1, 4}, {2, 3, 5, 1}, {1, 2, 17, 33}, {3, 1, 64, 50}};
  for (const auto& shape : shapes) {
    for (int64_t every : {2, 3, 7}) {
      const int64_t plane = shape[2] * shape[3];
      FillIn a{};
      a.pictures = shape[0];
      a.channels = shape[1];
      a.rows = shape[2];
      a.columns = shape[3];
      a.accuracy = 1e-9;
      a.most_steps = 500;
      std::vector<double> values(static_cast<size_t>(a.pictures * a.channels * plane));
      for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<double>(3 * i));
      const std::unique_ptr<bool[]> removed(new bool[static_cast<size_t>(a.pictures * plane)]);
      for (int64_t i = 0; i < a.pictures * plane; ++i) removed[static_cast<size_t>(i)] = i % plane % every != 0;
      std::vector<int64_t> steps(static_cast<size_t>(a.pictures * a.channels));
      a.removed = removed.get();
      a.values = values.data();
      a.steps = steps.data();
      const std::vector<double> before = values;
      std::vector<double> first;
      for (const Backend& backend : backends()) {
        if (backend.cuda) continue;
        describe(backend.name, " ", a.pictures, "x", a.channels, "x", a.rows, "x", a.columns, " every ", every);
        values = before;
        fill_in_cpu(backend.parallel, a);
        for (int64_t taken : steps) CHECK(taken >= 0);
        CHECK(largest_miss(a) < 1e-7);
        if (first.empty()) first = values;
        CHECK(values == first);
      }
    }
  }
}
