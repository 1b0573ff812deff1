#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"

namespace fastviz {
namespace {

constexpr float damping = 0.8f;  // of the Jacobi steps; those of a cycle are stable below 1
// Blocks of 2 x 2 pixels move as wholes on the coarser grid, which makes it too stiff.
constexpr float overcorrection = 1.4f;
constexpr int last_steps = 4;  // on the coarsest grid
constexpr int lanes = 16;  // partial sums, whatever the instruction set: the same additions on each

/// A plane with a border of zeros around it.
template <typename T>
struct Plane {
  int64_t rows, columns, stride;
  std::vector<T> values;

  Plane(int64_t rows, int64_t columns)
      : rows(rows),
        columns(columns),
        stride(columns + 2),
        values(static_cast<size_t>((rows + 2) * (columns + 2) + lanes)) {}
  T* row(int64_t y) { return values.data() + (y + 1) * stride + 1; }
  const T* row(int64_t y) const { return values.data() + (y + 1) * stride + 1; }
};

/// One grid: which share of each block is removed, 1 over the diagonal times the damping, the weights of neighbours.
struct Level {
  Plane<float> share, inverse, inside, found, right;
  std::vector<Range> used;  // the columns of each row that have something removed
  float side, corner;

  Level(int64_t rows, int64_t columns, float side, float corner)
      : share(rows, columns),
        inverse(rows, columns),
        inside(rows, columns),
        found(rows, columns),
        right(rows, columns),
        used(static_cast<size_t>(rows)),
        side(side),
        corner(corner) {}
};

/// The weighted sum of the 8 neighbours of a pixel; `at` points to it.
template <typename T>
FASTVIZ_INLINE T around(const T* at, int64_t stride, T side, T corner) {
  return side * ((at[-1] + at[1]) + (at[-stride] + at[stride])) +
         corner * ((at[-stride - 1] + at[-stride + 1]) + (at[stride - 1] + at[stride + 1]));
}

/// Means over blocks of 2 x 2 of two rows; what an odd side lacks counts as zeros, of which the border is made.
FASTVIZ_INLINE void pool_rows(const float* upper, const float* lower, float* target, Range columns) {
#pragma omp simd
  for (int64_t x = columns.first; x < columns.last; ++x)
    target[x] = 0.25f * ((upper[2 * x] + upper[2 * x + 1]) + (lower[2 * x] + lower[2 * x + 1]));
}

void find_used(Level& level) {
  for (int64_t y = 0; y < level.share.rows; ++y) {
    const float* share = level.share.row(y);
    int64_t first = 0, last = level.share.columns;
    while (first < last && share[first] == 0) ++first;
    while (last > first && share[last - 1] == 0) --last;
    level.used[static_cast<size_t>(y)] = {first, last};
  }
}

/// Sets the inverse of the diagonal from what holds each block: the known pixels beside it, and the other blocks.
void set_inverse(Level& level, const Plane<float>& held) {
  for (int64_t y = 0; y < level.share.rows; ++y) {
    const float* share = level.share.row(y);
    float* inverse = level.inverse.row(y);
    for (int64_t x = 0; x < level.share.columns; ++x) {
      const float diagonal =
          held.row(y)[x] + share[x] * around(share + x, level.share.stride, level.side, level.corner);
      inverse[x] = diagonal > 1e-12f ? damping / diagonal : 0.0f;
    }
  }
}

/// All grids of a picture. The weights between coarse blocks are those of full ones, times the shares of both that are
/// removed, so that each grid is one stencil; an inexact coarse grid costs steps, never accuracy.
std::vector<Level> grids(const bool* removed, int64_t rows, int64_t columns) {
  std::vector<Level> levels;
  levels.emplace_back(rows, columns, 1.0f / 6, 1.0f / 12);
  Level& finest = levels.back();
  Plane<float> ones(rows, columns), held(rows, columns);
  for (int64_t y = 0; y < rows; ++y) {
    std::fill(ones.row(y), ones.row(y) + columns, 1.0f);
    for (int64_t x = 0; x < columns; ++x) finest.share.row(y)[x] = removed[y * columns + x] ? 1.0f : 0.0f;
  }
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < columns; ++x) {
      const float* share = finest.share.row(y) + x;
      const float all = around(ones.row(y) + x, ones.stride, finest.side, finest.corner);
      held.row(y)[x] = *share * (all - around(share, ones.stride, finest.side, finest.corner));
    }
  }
  while (true) {
    Level& level = levels.back();
    find_used(level);
    set_inverse(level, held);
    if (std::max(rows, columns) <= 2) return levels;
    const Plane<float>& share = level.share;
    Level coarse((rows + 1) / 2, (columns + 1) / 2, 2 * level.side + 2 * level.corner, level.corner);
    Plane<float> coarse_held(coarse.share.rows, coarse.share.columns);
    for (int64_t y = 0; y < coarse.share.rows; ++y) {
      // below an odd last row lies the border
      const Range all{0, coarse.share.columns};
      pool_rows(share.row(2 * y), share.row(2 * y + 1), coarse.share.row(y), all);
      pool_rows(held.row(2 * y), held.row(2 * y + 1), coarse_held.row(y), all);
      for (int64_t x = 0; x < all.last; ++x) coarse_held.row(y)[x] *= 4;
    }
    rows = coarse.share.rows;
    columns = coarse.share.columns;
    held = std::move(coarse_held);
    levels.push_back(std::move(coarse));
  }
}

/// One damped Jacobi step: found from `inside`, which is the share of each block times what it was.
FASTVIZ_INLINE void smooth(Level& level) {
  const int64_t stride = level.share.stride;
  for (int64_t y = 0; y < level.share.rows; ++y) {
    const Range used = level.used[static_cast<size_t>(y)];
    const float *share = level.share.row(y), *inverse = level.inverse.row(y), *right = level.right.row(y),
                *inside = level.inside.row(y);
    float* found = level.found.row(y);
    const float side = level.side, corner = level.corner;
#pragma omp simd
    for (int64_t x = used.first; x < used.last; ++x) {
      const float pull = share[x] * around(inside + x, stride, side, corner) + right[x];
      found[x] = (1 - damping) * found[x] + inverse[x] * pull;
    }
  }
}

FASTVIZ_INLINE void put_inside(Level& level) {
  for (int64_t y = 0; y < level.share.rows; ++y) {
    const Range used = level.used[static_cast<size_t>(y)];
    const float *share = level.share.row(y), *found = level.found.row(y);
    float* inside = level.inside.row(y);
#pragma omp simd
    for (int64_t x = used.first; x < used.last; ++x) inside[x] = share[x] * found[x];
  }
}

/// The first damped step from zero, and what it leaves of the right side, on the next grid.
FASTVIZ_INLINE void descend(Level& level, Level& coarse, std::vector<float>& rows) {
  const int64_t stride = level.share.stride;
  for (int64_t y = 0; y < level.share.rows; ++y) {
    const Range used = level.used[static_cast<size_t>(y)];
    const float *share = level.share.row(y), *inverse = level.inverse.row(y), *right = level.right.row(y);
    float *inside = level.inside.row(y), *found = level.found.row(y);
#pragma omp simd
    for (int64_t x = used.first; x < used.last; ++x) {
      found[x] = inverse[x] * right[x];
      inside[x] = share[x] * found[x];
    }
  }
  const float side = level.side, corner = level.corner;
  for (int64_t y = 0; y < level.share.rows; y += 2) {
    Range both{level.share.columns, 0};
    std::fill(rows.begin(), rows.end(), 0.0f);
    float* halves[] = {rows.data(), rows.data() + stride};
    for (int64_t half = 0; half < 2 && y + half < level.share.rows; ++half) {
      const Range used = level.used[static_cast<size_t>(y + half)];
      if (used.size() == 0) continue;
      both = {std::min(both.first, used.first), std::max(both.last, used.last)};
      const float *share = level.share.row(y + half), *right = level.right.row(y + half),
                  *inside = level.inside.row(y + half);
      float* left = halves[half];
#pragma omp simd
      for (int64_t x = used.first; x < used.last; ++x)
        left[x] = share[x] * around(inside + x, stride, side, corner) + (1 - damping) * right[x];
    }
    if (both.first < both.last)
      pool_rows(halves[0], halves[1], coarse.right.row(y / 2), {both.first / 2, (both.last + 1) / 2});
  }
}

/// What the coarse grid found, added: to the pixels that are removed, and to coarse blocks as wholes, whatever their
/// share. Where that is 0 nothing is read of it.
FASTVIZ_INLINE void ascend(Level& level, const Level& coarse, bool finest, std::vector<float>& row) {
  constexpr float factor = 4 * overcorrection;
  for (int64_t y = 0; y < level.share.rows; ++y) {
    const Range used = level.used[static_cast<size_t>(y)];
    if (used.size() == 0) continue;
    const float *share = level.share.row(y), *above = coarse.found.row(y / 2);
    float *found = level.found.row(y), *inside = level.inside.row(y), *wide = row.data();
#pragma omp simd
    for (int64_t x = used.first / 2; x < (used.last + 1) / 2; ++x) wide[2 * x] = wide[2 * x + 1] = above[x];
#pragma omp simd
    for (int64_t x = used.first; x < used.last; ++x) {
      found[x] += finest ? factor * share[x] * wide[x] : factor * wide[x];
      inside[x] = share[x] * found[x];
    }
  }
}

/// About the inverse of the matrix times the right side of the finest grid, found there. Symmetric, positive definite.
FASTVIZ_INLINE void cycle(std::vector<Level>& levels, std::vector<float>& rows) {
  const size_t last = levels.size() - 1;
  for (size_t at = 0; at < last; ++at) descend(levels[at], levels[at + 1], rows);
  Level& coarsest = levels[last];
  for (int64_t y = 0; y < coarsest.share.rows; ++y) {
    for (int64_t x = 0; x < coarsest.share.columns; ++x)
      coarsest.found.row(y)[x] = coarsest.inverse.row(y)[x] * coarsest.right.row(y)[x];
  }
  for (int step = 0; step < last_steps; ++step) {
    put_inside(coarsest);
    smooth(coarsest);
  }
  for (size_t at = last; at-- > 0;) {
    ascend(levels[at], levels[at + 1], at == 0, rows);
    smooth(levels[at]);
  }
}

/// Sums in a fixed number of parts, so that the instruction set changes no rounding.
struct Sums {
  double parts[lanes] = {};

  double total() const {
    double sum = 0;
    for (double part : parts) sum += part;
    return sum;
  }
};

template <typename A, typename B>
FASTVIZ_INLINE void add_products(const A* first, const B* second, Range columns, Sums& sums) {
  int64_t x = columns.first;
  for (; x + lanes <= columns.last; x += lanes) {
#pragma omp simd
    for (int lane = 0; lane < lanes; ++lane)
      sums.parts[lane] += static_cast<double>(first[x + lane]) * static_cast<double>(second[x + lane]);
  }
  for (int lane = 0; x < columns.last; ++x, ++lane)
    sums.parts[lane] += static_cast<double>(first[x]) * static_cast<double>(second[x]);
}

/// The systems of one picture, whose planes have the same matrix.
struct Solver {
  int64_t rows, columns;
  std::vector<Level> levels;
  std::vector<float> buffer;
  Plane<double> residual, direction, moved, found, diagonal;

  Solver(const bool* removed, int64_t rows, int64_t columns)
      : rows(rows),
        columns(columns),
        levels(grids(removed, rows, columns)),
        buffer(static_cast<size_t>(2 * (columns + 4))),
        residual(rows, columns),
        direction(rows, columns),
        moved(rows, columns),
        found(rows, columns),
        diagonal(rows, columns) {
    for (int64_t y = 0; y < rows; ++y) std::fill(found.row(y), found.row(y) + columns, 1.0);
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; ++x)
        diagonal.row(y)[x] = around(found.row(y) + x, found.stride, 1.0 / 6, 1.0 / 12);
    }
  }

  Range used(int64_t y) const { return levels[0].used[static_cast<size_t>(y)]; }
};

/// The residual, of a plane with the pixels that are known, and its size.
FASTVIZ_INLINE double begin(Solver& s, const double* values) {
  double largest = 0;
  for (int64_t y = 0; y < s.rows; ++y) {
    const float* share = s.levels[0].share.row(y);
    double* known = s.moved.row(y);
    for (int64_t x = 0; x < s.columns; ++x) {
      known[x] = share[x] != 0 ? 0.0 : values[y * s.columns + x];
      largest = std::max(largest, std::abs(known[x]));
    }
  }
  const double scale = largest > 0 ? 1 / largest : 0;
  for (int64_t y = 0; y < s.rows; ++y) {
    const float* share = s.levels[0].share.row(y);
    const double* known = s.moved.row(y);
    double *residual = s.residual.row(y), *found = s.found.row(y), *direction = s.direction.row(y);
    for (int64_t x = 0; x < s.columns; ++x) {
      residual[x] = share[x] != 0 ? scale * around(known + x, s.moved.stride, 1.0 / 6, 1.0 / 12) : 0.0;
      found[x] = direction[x] = 0;
    }
  }
  return largest;
}

/// The preconditioned residual, in the finest grid; its product with the residual, and its largest value.
FASTVIZ_INLINE double precondition(Solver& s, double& largest) {
  Level& finest = s.levels[0];
  for (int64_t y = 0; y < s.rows; ++y) {
    const double* residual = s.residual.row(y);
    float* right = finest.right.row(y);
    const Range used = s.used(y);
#pragma omp simd
    for (int64_t x = used.first; x < used.last; ++x) right[x] = static_cast<float>(residual[x]);
  }
  cycle(s.levels, s.buffer);
  Sums sums;
  float most = 0;
  for (int64_t y = 0; y < s.rows; ++y) {
    const Range used = s.used(y);
    const float* estimate = finest.found.row(y);
    add_products(estimate, s.residual.row(y), used, sums);
#pragma omp simd reduction(max : most)
    for (int64_t x = used.first; x < used.last; ++x) most = std::max(most, std::abs(estimate[x]));
  }
  largest = static_cast<double>(most);
  return sums.total();
}

/// The matrix times the direction, and the product of both.
FASTVIZ_INLINE double apply(Solver& s) {
  Sums sums;
  for (int64_t y = 0; y < s.rows; ++y) {
    const Range used = s.used(y);
    const float* share = s.levels[0].share.row(y);
    const double *direction = s.direction.row(y), *diagonal = s.diagonal.row(y);
    double* moved = s.moved.row(y);
    const int64_t stride = s.direction.stride;
#pragma omp simd
    for (int64_t x = used.first; x < used.last; ++x)
      moved[x] = static_cast<double>(share[x]) *
                 (diagonal[x] * direction[x] - around(direction + x, stride, 1.0 / 6, 1.0 / 12));
    add_products(direction, moved, used, sums);
  }
  return sums.total();
}

FASTVIZ_INLINE void turn(Solver& s, double share) {
  for (int64_t y = 0; y < s.rows; ++y) {
    const Range used = s.used(y);
    const float* estimate = s.levels[0].found.row(y);
    double* direction = s.direction.row(y);
#pragma omp simd
    for (int64_t x = used.first; x < used.last; ++x)
      direction[x] = share * direction[x] + static_cast<double>(estimate[x]);
  }
}

FASTVIZ_INLINE void step(Solver& s, double length) {
  for (int64_t y = 0; y < s.rows; ++y) {
    const Range used = s.used(y);
    const double *direction = s.direction.row(y), *moved = s.moved.row(y);
    double *found = s.found.row(y), *residual = s.residual.row(y);
#pragma omp simd
    for (int64_t x = used.first; x < used.last; ++x) {
      found[x] += length * direction[x];
      residual[x] -= length * moved[x];
    }
  }
}

/// Fills in one plane; how many steps it took, -1 where `most` were not enough.
FASTVIZ_INLINE int64_t fill_plane(Solver* solver, double* values, double accuracy, int64_t most) {
  Solver& s = *solver;
  const double scale = begin(s, values);
  double error = 0, product = 0;
  int64_t count = 0;
  bool done = false;
  while (true) {
    const double before = product;
    product = precondition(s, error);
    done = error <= accuracy;
    if (done || count == most) break;
    turn(s, count ? product / before : 0.0);
    step(s, product / apply(s));
    ++count;
  }
  for (int64_t y = 0; y < s.rows; ++y) {
    const float* share = s.levels[0].share.row(y);
    const double* found = s.found.row(y);
    for (int64_t x = 0; x < s.columns; ++x) {
      if (share[x] != 0) values[y * s.columns + x] = scale * found[x];
    }
  }
  return done ? count : -1;
}

}  // namespace

void fill_in_cpu(const Parallel& parallel, const FillIn& a) {
  const int64_t plane = a.rows * a.columns;
  parallel_for(parallel, a.pictures, a.channels * plane * 64, [&](int64_t first, int64_t last) {
    for (int64_t picture = first; picture < last; ++picture) {
      Solver solver(a.removed + picture * plane, a.rows, a.columns);
      for (int64_t channel = 0; channel < a.channels; ++channel) {
        const int64_t at = picture * a.channels + channel;
        a.steps[at] = versioned<fill_plane>(&solver, a.values + at * plane, a.accuracy, a.most_steps);
      }
    }
  });
}

}  // namespace fastviz
