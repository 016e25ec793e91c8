// Algorithm, for a block of queries:
// 1. A bound for every query and every group of kGroupRows bank rows. |q - m|^2 = |q|^2 - 2 (q.m -
//    |m|^2 / 2): threads take strips of bank rows, multiply them with a tile of queries, and reduce
//    the tile while it is in the cache to the largest q.m - |m|^2 / 2 of every group.
// 2. Every query opens its most promising group, which gives a distance that is reached, and then
//    all groups whose bound does not exclude a row as near as that. In an opened group the bound is
//    taken again row by row, and the rows that are left are measured in float64.
// The rows of step 1 are those of the bank or, where the bank has a projection, the projected ones:
// a tenth of the arithmetic, and the bounds still exclude nearly all rows of a feature bank. A
// query whose bounds exclude too little goes through the plain rows instead. Bounds are float32 and
// account for their rounding (README.md derives this), so that the result depends neither on the
// number of threads nor on the instruction set. Memory: per thread a strip of the bank and a tile;
// one float per query of the block and group; never Q x M.
#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "common/sum_squares.h"
#include "nearest_neighbor_scoring/op.h"

namespace mmad_fast {
namespace nearest_neighbor_kernels {

constexpr int64_t kLanes = 16;  // queries of a batch
constexpr int64_t kGroupRows = 16;
static_assert(kStripRows % kGroupRows == 0, "groups do not straddle strips");
constexpr int64_t kProjectedRows = 4;      // rows that are projected together
constexpr int64_t kProjectedColumns = 32;  // directions that are taken together

// Vectors of 64 bytes: the compiler makes them of the registers that there are.
typedef float Floats __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(64)));
static_assert(sizeof(Floats) == kLanes * sizeof(float), "a batch is a vector");

// largest[lane] = max over the rows of products[row * stride + lane] - half_norms[row]; a NaN never
// is the largest.
MMAD_FAST_MULTIVERSION void reduce_group(const float* products, int64_t stride,
                                         const float* half_norms, int64_t rows, float* largest) {
  Floats maximum = Floats{} - std::numeric_limits<float>::infinity();
  for (int64_t row = 0; row < rows; ++row) {
    Floats value;
    std::memcpy(&value, products + row * stride, sizeof(value));
    value -= half_norms[row];
    maximum = value > maximum ? value : maximum;
  }
  std::memcpy(largest, &maximum, sizeof(maximum));
}

// best[lane] = the group with the largest value, the first of them.
MMAD_FAST_MULTIVERSION void best_groups(const float* values, int64_t num_groups,
                                        int32_t* __restrict__ best) {
  float largest[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    largest[lane] = -std::numeric_limits<float>::infinity();
    best[lane] = 0;
  }
  for (int32_t group = 0; group < num_groups; ++group) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const bool is_larger = values[group * kLanes + lane] > largest[lane];
      largest[lane] = is_larger ? values[group * kLanes + lane] : largest[lane];
      best[lane] = is_larger ? group : best[lane];
    }
  }
}

// counts[lane] = groups whose value is not below the lane's threshold.
MMAD_FAST_MULTIVERSION void count_groups(const float* values, int64_t num_groups,
                                         const float* thresholds, int32_t* __restrict__ counts) {
  for (int64_t lane = 0; lane < kLanes; ++lane) counts[lane] = 0;
  for (int64_t group = 0; group < num_groups; ++group) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      counts[lane] += values[group * kLanes + lane] >= thresholds[lane] ? 1 : 0;
    }
  }
}

// The first group from `group` on with a value that is not below its lane's threshold.
MMAD_FAST_MULTIVERSION int64_t next_group(const float* values, int64_t group, int64_t num_groups,
                                          const float* thresholds) {
  for (; group < num_groups; ++group) {
    int32_t any = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      any |= values[group * kLanes + lane] >= thresholds[lane] ? 1 : 0;
    }
    if (any) break;
  }
  return group;
}

// Signed integers and masks: compilers make vectors of these, and a third of the time, than of
// unsigned ones and a choice.
MMAD_FAST_MULTIVERSION void widen_halves(const uint16_t* halves, int64_t count,
                                         float* __restrict__ floats) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t half = halves[i];
    const int32_t magnitude = half & 0x7fff;
    // Subnormal halves are multiples of 2^-24; the others get the exponent's new offset.
    const int32_t subnormal = float_bits(static_cast<float>(magnitude) * 0x1p-24f);
    const int32_t normal = (magnitude << 13) + (112 << 23);
    const int32_t is_subnormal = (magnitude - 0x400) >> 31;  // all bits or none
    const uint32_t bits = (subnormal & is_subnormal) | (normal & ~is_subnormal);
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    floats[i] = __builtin_bit_cast(float, bits | sign);
  }
}

// sums[row][column] of kProjectedRows rows (values[d * kProjectedRows + row]) and
// kProjectedColumns columns of the basis.
MMAD_FAST_MULTIVERSION void project_rows(const double* values, int64_t width, const double* basis,
                                         int64_t stride, double* sums) {
  constexpr int kVectors = kProjectedColumns / 8;
  Doubles totals[kProjectedRows][kVectors];
#pragma GCC unroll 4
  for (int row = 0; row < kProjectedRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) totals[row][v] = Doubles{};
  }
  for (int64_t d = 0; d < width; ++d) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Doubles column;
      std::memcpy(&column, basis + d * stride + v * 8, sizeof(column));
#pragma GCC unroll 4
      for (int row = 0; row < kProjectedRows; ++row) {
        totals[row][v] += values[d * kProjectedRows + row] * column;
      }
    }
  }
#pragma GCC unroll 4
  for (int row = 0; row < kProjectedRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Doubles total = totals[row][v];
      std::memcpy(sums + row * kProjectedColumns + v * 8, &total, sizeof(total));
    }
  }
}

}  // namespace nearest_neighbor_kernels

namespace {

using namespace nearest_neighbor_kernels;

constexpr int64_t kTileColumns = 48;       // queries of a tile, about: the tile stays in L1
constexpr int64_t kMaxBlock = 1024;        // queries of a block
constexpr int64_t kMinBlock = 96;          //
constexpr int64_t kBoundBytes = 12 << 20;  // of a block's bounds
constexpr double kRounding = FLT_EPSILON / 2;
constexpr double kOverflow = 1e37;  // squared lengths from here on may overflow in float32
constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Scales the basis, whose columns are orthonormal up to 1e-12 (projection.py), so that a projected
// distance is never longer than the true one.
constexpr double kBasisScale = 1 - 1e-9;
// Cost of one multiply-add where a row is measured on its own, in multiply-adds of the matrix
// product.
constexpr int64_t kScatteredCost = 32;

int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

const float* row_of(const BankRows& rows, int64_t row, float* scratch) {
  if (rows.floats) return rows.floats + row * rows.width;
  widen_halves(rows.halves + row * rows.width, rows.width, scratch);
  return scratch;
}

// Prefetches the beginning of a row and of each further page that it spans; from there the
// hardware prefetcher, which stops at the end of a page, goes on.
void prefetch_row(const BankRows& rows, int64_t row) {
  const int64_t bytes = rows.width * (rows.floats ? sizeof(float) : sizeof(uint16_t));
  const char* begin = rows.floats ? reinterpret_cast<const char*>(rows.floats)
                                  : reinterpret_cast<const char*>(rows.halves);
  begin += row * bytes;
  for (int64_t offset = 0; offset < std::min<int64_t>(bytes, 256); offset += 64) {
    __builtin_prefetch(begin + offset);
  }
  for (int64_t offset = 4096; offset < bytes; offset += 4096) __builtin_prefetch(begin + offset);
}

void fill_strip(const BankRows& rows, int64_t first_row, int64_t count, Strip& strip) {
  if (rows.floats) {
    strip.fill(rows.floats + first_row * rows.width, count, rows.width);
    return;
  }
  for (int64_t first = 0; first < rows.width; first += kDepthBlock) {
    const int64_t depth = std::min(kDepthBlock, rows.width - first);
    for (int64_t row = 0; row < count; ++row) {
      widen_halves(rows.halves + (first_row + row) * rows.width + first, depth,
                   strip.block(first / kDepthBlock, row));
    }
  }
}

void measure_half_norms(BankRows& rows) {
  rows.half_norms.resize(rows.num_rows);
  parallel_for(rows.num_rows, 256, [&](int64_t begin, int64_t end) {
    AlignedFloats scratch(rows.width);
    for (int64_t row = begin; row < end; ++row) {
      const double half = sum_squares(row_of(rows, row, scratch.data()), rows.width) / 2;
      rows.half_norms[row] =
          half < FLT_MAX ? static_cast<float>(half) : std::numeric_limits<float>::infinity();
    }
  });
}

// Writes the projected rows first .. first + count - 1, count <= kProjectedRows, and the lengths of
// the rows relative to the mean where `lengths` is given.
void project(const Projection& projection, const BankRows& rows, int64_t first, int64_t count,
             std::vector<double>& centered, float* target, double* lengths) {
  const int64_t width = rows.width, rank = projection.rank;
  centered.assign(width * kProjectedRows, 0.0);
  AlignedFloats scratch(rows.halves ? width : 0);
  double squared_lengths[kProjectedRows] = {}, rest[kProjectedRows] = {};
  for (int64_t row = 0; row < count; ++row) {
    const float* source = row_of(rows, first + row, scratch.data());
    for (int64_t d = 0; d < width; ++d) {
      const double value = source[d] - projection.mean[d];
      centered[d * kProjectedRows + row] = value;
      squared_lengths[row] += value * value;
    }
    rest[row] = squared_lengths[row];
  }
  double sums[kProjectedRows * kProjectedColumns];
  for (int64_t column = 0; column < rank; column += kProjectedColumns) {
    project_rows(centered.data(), width, projection.basis.data() + column, projection.padded_rank(),
                 sums);
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t j = 0; j < std::min(kProjectedColumns, rank - column); ++j) {
        const double value = sums[row * kProjectedColumns + j];
        target[row * (rank + 1) + column + j] = static_cast<float>(value);
        rest[row] -= value * value;
      }
    }
  }
  for (int64_t row = 0; row < count; ++row) {
    target[row * (rank + 1) + rank] = static_cast<float>(std::sqrt(std::max(0.0, rest[row])));
    if (lengths) lengths[row] = std::sqrt(squared_lengths[row]);
  }
}

struct Nearest {
  double squared_distance = kInfinity;
  int64_t index = std::numeric_limits<int64_t>::max();

  void offer(double other_squared_distance, int64_t other_index) {
    if (other_squared_distance < squared_distance ||
        (other_squared_distance == squared_distance && other_index < index)) {
      squared_distance = other_squared_distance;
      index = other_index;
    }
  }
};

// The queries of a block that bounds are computed from: the queries themselves, or projected ones.
struct BoundQueries {
  const float* rows;  // count x width
  int64_t count;
  int64_t width;
  double coordinate_error;      // of a projected query, relative to its entry in `lengths`
  std::vector<double> lengths;  // of the queries relative to the projection's mean
  std::vector<double> squared_norms;
};

// A bank row within a given distance of a query satisfies both limits; one that misses a limit is
// further away.
struct Limits {
  float threshold = -std::numeric_limits<float>::infinity();  // lower, of q.m - |m|^2 / 2
  double rough = kInfinity;                                   // upper, of rough_squared_distance
};

// The limits with the rounding errors of README.md. `squared_norm` is that of the query's row in
// BoundQueries, `length` its entry in `lengths`.
Limits limits_of(double squared_distance, double squared_norm, double length,
                 double coordinate_error, int64_t bound_width) {
  Limits limits;
  const double width = static_cast<double>(bound_width);
  const double distance = std::sqrt(squared_distance);
  const double reach =
      (distance + coordinate_error * (2 * length + distance)) * (1 + 1e-9) + width * FLT_MIN;
  const double norm = std::sqrt(squared_norm);
  const double row_norm = norm + reach;  // of a row in reach, at most
  if (!(row_norm * row_norm <= kOverflow)) return limits;
  const double terms =
      static_cast<double>(std::min(bound_width, kDepthBlock) + bound_width / kDepthBlock + 3);
  const double underflow = 2 * (width + 2) * FLT_MIN;
  const double error = 1.01 * kRounding * row_norm * ((terms + 1) * norm + row_norm) + underflow;
  const double lowest = (squared_norm - reach * reach) / 2 - error;
  limits.threshold = static_cast<float>(lowest - 2 * kRounding * std::abs(lowest) - FLT_MIN);
  const double roundings = static_cast<double>(bound_width / kFloatLanes + 8);
  limits.rough = reach * reach * (1 + 1.01 * roundings * kRounding) + underflow;
  return limits;
}

// Step 1: for batches of kLanes queries and every group, kLanes values; those behind the last query
// of the last batch are anything. `values` is the memory for it.
class GroupBounds {
 public:
  GroupBounds(const BoundQueries& queries, const BankRows& bank, AlignedFloats& values)
      : num_groups_((bank.num_rows + kGroupRows - 1) / kGroupRows), values_(values) {
    const std::size_t size = round_up(queries.count, kLanes) * num_groups_;
    if (values_.size() < size) values_.resize(size);
    const PackedMatrix packed =
        pack_matrix(queries.rows, queries.count, queries.width, queries.width);
    // A tile is whole batches, and so begins at one.
    int64_t panels = std::max<int64_t>(1, kTileColumns / packed.panel_width);
    while (panels * packed.panel_width % kLanes != 0) ++panels;
    const int64_t strips = (bank.num_rows + kStripRows - 1) / kStripRows;
    std::atomic<int64_t> next{0};
    parallel_for(std::min<int64_t>(num_threads(), strips), 1, [&](int64_t, int64_t) {
      Strip strip(bank.width);
      AlignedFloats tile(kStripRows * panels * packed.panel_width);
      for (int64_t i = next++; i < strips; i = next++) {
        const int64_t first_row = i * kStripRows;
        const int64_t rows = std::min(kStripRows, bank.num_rows - first_row);
        fill_strip(bank, first_row, rows, strip);
        for (int64_t panel = 0; panel < packed.num_panels(); panel += panels) {
          take_tile(bank, packed, strip, first_row, rows, panel, panels, tile.data());
        }
      }
    });
  }

  int64_t num_groups() const { return num_groups_; }
  const float* batch(int64_t batch) const { return values_.data() + batch * num_groups_ * kLanes; }

 private:
  void take_tile(const BankRows& bank, const PackedMatrix& packed, const Strip& strip,
                 int64_t first_row, int64_t rows, int64_t panel, int64_t panels, float* tile) {
    const int64_t end = std::min(panel + panels, packed.num_panels());
    const int64_t stride = panels * packed.panel_width;
    const int64_t first_query = panel * packed.panel_width;
    const int64_t count = std::min(stride, packed.n - first_query);
    multiply_strip(strip, rows, packed, panel, end, tile, stride);
    for (int64_t row = 0; row < rows; row += kGroupRows) {
      const int64_t group = (first_row + row) / kGroupRows;
      for (int64_t column = 0; column < count; column += kLanes) {
        const int64_t batch = (first_query + column) / kLanes;
        reduce_group(tile + row * stride + column, stride, bank.half_norms.data() + first_row + row,
                     std::min(kGroupRows, rows - row),
                     values_.data() + (batch * num_groups_ + group) * kLanes);
      }
    }
  }

  int64_t num_groups_;
  AlignedFloats& values_;
};

// Step 2 for one query.
class Search {
 public:
  Search(const float* query, const BankRows& rows, const BoundQueries& bound_queries,
         int64_t bound_query, const BankRows& bound_rows, float* scratch)
      : query_(query),
        rows_(rows),
        bound_query_(bound_queries.rows + bound_query * bound_queries.width),
        bound_rows_(bound_rows),
        squared_norm_(bound_queries.squared_norms[bound_query]),
        length_(bound_queries.lengths[bound_query]),
        coordinate_error_(bound_queries.coordinate_error),
        scratch_(scratch) {}

  // Measures the rows of a group that may be as near as the nearest one so far, most promising
  // ones first.
  void open(int64_t group) {
    ++opened_groups;
    const int64_t first = group * kGroupRows;
    const int64_t count = std::min(kGroupRows, bound_rows_.num_rows - first);
    std::pair<float, int64_t> left[kGroupRows];
    int64_t num_left = 0;
    for (int64_t row = first; row < first + count; ++row) {
      const float rough = rough_squared_distance(bound_query_, row_of(bound_rows_, row, scratch_),
                                                 bound_rows_.width);
      if (rough <= limit_) left[num_left++] = {rough, row};
    }
    std::sort(left, left + num_left);
    for (int64_t i = 0; i < num_left; ++i) prefetch_row(rows_, left[i].second);
    for (int64_t i = 0; i < num_left && left[i].first <= limit_; ++i) measure(left[i].second);
  }

  // Groups with a value below this have no row as near as the nearest one so far.
  float threshold() const { return threshold_; }

  Nearest nearest;
  int64_t opened_groups = 0;
  int64_t measured_rows = 0;

 private:
  void measure(int64_t row) {
    ++measured_rows;
    const double before = nearest.squared_distance;
    nearest.offer(squared_distance(query_, row_of(rows_, row, scratch_), rows_.width), row);
    if (nearest.squared_distance < before) tighten();
  }

  void tighten() {
    const Limits limits = limits_of(nearest.squared_distance, squared_norm_, length_,
                                    coordinate_error_, bound_rows_.width);
    threshold_ = limits.threshold;
    limit_ = limits.rough;
  }

  const float* query_;
  const BankRows& rows_;
  const float* bound_query_;
  const BankRows& bound_rows_;
  double squared_norm_, length_, coordinate_error_;
  float* scratch_;
  float threshold_ = -std::numeric_limits<float>::infinity();
  double limit_ = kInfinity;  // of rough_squared_distance
};

// One search over a block of queries, in the bank's rows or in the projected ones.
struct BlockSearch {
  const float* queries;  // count x rows.width
  const BankRows& rows;
  const BoundQueries& bound_queries;
  const BankRows& bound_rows;
  int64_t max_groups;  // a query that would have to open more is given up

  // nearest[i] of every query; one that was given up keeps the index it had.
  ScoringStatistics run(Nearest* nearest, AlignedFloats& memory) const {
    const GroupBounds bounds(bound_queries, bound_rows, memory);
    const int64_t batches = (bound_queries.count + kLanes - 1) / kLanes;
    ScoringStatistics statistics;
    std::mutex mutex;
    parallel_for(batches, 1, [&](int64_t batch, int64_t) {
      const ScoringStatistics part = run_batch(bounds, batch, nearest);
      const std::lock_guard<std::mutex> lock(mutex);
      statistics.measured_rows += part.measured_rows;
      statistics.opened_groups += part.opened_groups;
      statistics.plain_queries += part.plain_queries;
    });
    return statistics;
  }

  ScoringStatistics run_batch(const GroupBounds& bounds, int64_t batch, Nearest* nearest) const {
    const float* values = bounds.batch(batch);
    const int64_t first = batch * kLanes;
    const int64_t count = std::min(kLanes, bound_queries.count - first);
    AlignedFloats scratch(std::max(rows.width, bound_rows.width));
    std::vector<Search> searches;
    searches.reserve(count);
    int32_t best[kLanes], counts[kLanes];
    float thresholds[kLanes];
    std::fill_n(thresholds, kLanes, std::numeric_limits<float>::quiet_NaN());
    best_groups(values, bounds.num_groups(), best);
    for (int64_t lane = 0; lane < count; ++lane) {
      searches.emplace_back(queries + (first + lane) * rows.width, rows, bound_queries,
                            first + lane, bound_rows, scratch.data());
      searches[lane].open(best[lane]);
      thresholds[lane] = searches[lane].threshold();
    }
    count_groups(values, bounds.num_groups(), thresholds, counts);
    bool is_given_up[kLanes] = {};
    for (int64_t lane = 0; lane < count; ++lane) {
      is_given_up[lane] = counts[lane] > max_groups;
      if (is_given_up[lane]) thresholds[lane] = std::numeric_limits<float>::quiet_NaN();
    }
    for (int64_t group = 0;; ++group) {
      group = next_group(values, group, bounds.num_groups(), thresholds);
      if (group == bounds.num_groups()) break;
      for (int64_t lane = 0; lane < count; ++lane) {
        if (values[group * kLanes + lane] >= thresholds[lane] && group != best[lane]) {
          searches[lane].open(group);
          thresholds[lane] = searches[lane].threshold();
        }
      }
    }
    ScoringStatistics statistics;
    for (int64_t lane = 0; lane < count; ++lane) {
      statistics.measured_rows += searches[lane].measured_rows;
      statistics.opened_groups += searches[lane].opened_groups;
      statistics.plain_queries += is_given_up[lane] ? 1 : 0;
      if (!is_given_up[lane]) nearest[first + lane] = searches[lane].nearest;
    }
    return statistics;
  }
};

BoundQueries plain_queries(const float* queries, int64_t count, int64_t width) {
  BoundQueries bound{
      queries, count, width, 0.0, std::vector<double>(count), std::vector<double>(count)};
  for (int64_t query = 0; query < count; ++query) {
    bound.squared_norms[query] = sum_squares(queries + query * width, width);
  }
  return bound;
}

BoundQueries projected_queries(const Projection& projection, const float* queries, int64_t count,
                               int64_t width, AlignedFloats& projected) {
  const int64_t bound_width = projection.rank + 1;
  projected.resize(count * bound_width);
  BoundQueries bound = plain_queries(projected.data(), 0, bound_width);
  bound.count = count;
  bound.lengths.resize(count);
  bound.squared_norms.resize(count);
  BankRows rows;
  rows.floats = queries;
  rows.num_rows = count;
  rows.width = width;
  project_all(projection, rows, projected.data(), bound.lengths.data());
  for (int64_t query = 0; query < count; ++query) {
    bound.squared_norms[query] = sum_squares(projected.data() + query * bound_width, bound_width);
  }
  bound.coordinate_error = coordinate_error(projection.rank, width);
  return bound;
}

// Queries per block, so that the bounds of a block stay below kBoundBytes.
int64_t block_size(int64_t num_rows) {
  const int64_t bytes = (num_rows + kGroupRows - 1) / kGroupRows * sizeof(float);
  return std::min(kMaxBlock, std::max(kMinBlock, kBoundBytes / bytes / kLanes * kLanes));
}

void add(ScoringStatistics& total, const ScoringStatistics& part) {
  total.measured_rows += part.measured_rows;
  total.opened_groups += part.opened_groups;
  total.plain_queries += part.plain_queries;
}

// rough[m] = the rough squared distance of the query's bound row to that of bank row m.
std::vector<float> rough_squared_distances(const float* bound_query, const BankRows& bound_rows) {
  std::vector<float> rough(bound_rows.num_rows);
  parallel_for(bound_rows.num_rows, 512, [&](int64_t begin, int64_t end) {
    AlignedFloats scratch(bound_rows.halves ? bound_rows.width : 0);
    for (int64_t row = begin; row < end; ++row) {
      rough[row] = rough_squared_distance(bound_query, row_of(bound_rows, row, scratch.data()),
                                          bound_rows.width);
    }
  });
  return rough;
}

// The rows with the smallest exact distances among those offered, in ascending order.
class NearestRows {
 public:
  explicit NearestRows(int64_t count) : found(count) {}

  void offer(double squared_distance, int64_t index) {
    Nearest offered{squared_distance, index};
    for (Nearest& place : found) {
      const Nearest before = place;
      place.offer(offered.squared_distance, offered.index);
      if (place.index != before.index) offered = before;
    }
  }

  std::vector<Nearest> found;
};

}  // namespace

int64_t Projection::padded_rank() const { return round_up(rank, kProjectedColumns); }

Projection make_projection(const double* mean, const double* basis, int64_t width, int64_t rank) {
  Projection projection;
  projection.rank = rank;
  projection.mean.assign(mean, mean + width);
  const int64_t stride = projection.padded_rank();
  projection.basis.assign(width * stride, 0.0);
  for (int64_t d = 0; d < width; ++d) {
    for (int64_t j = 0; j < rank; ++j) {
      projection.basis[d * stride + j] = basis[d * rank + j] * kBasisScale;
    }
  }
  return projection;
}

void project_all(const Projection& projection, const BankRows& rows, float* target,
                 double* lengths) {
  parallel_for(rows.num_rows, 64, [&](int64_t begin, int64_t end) {
    std::vector<double> centered;
    for (int64_t row = begin; row < end; row += kProjectedRows) {
      project(projection, rows, row, std::min(kProjectedRows, end - row), centered,
              target + row * (projection.rank + 1), lengths ? lengths + row : nullptr);
    }
  });
}

double coordinate_error(int64_t rank, int64_t width) {
  const double sums =
      2 * std::sqrt(static_cast<double>(rank)) * static_cast<double>(width + 8) * DBL_EPSILON / 2;
  return sums + 2 * std::sqrt(sums) + 1.01 * kRounding;
}

Bank prepare_bank(BankRows rows, const double* mean, const double* basis, int64_t rank) {
  Bank bank;
  bank.rows = std::move(rows);
  measure_half_norms(bank.rows);
  if (rank == 0) return bank;
  bank.projection = make_projection(mean, basis, bank.rows.width, rank);
  bank.projected_floats.resize(bank.rows.num_rows * (rank + 1));
  project_all(bank.projection, bank.rows, bank.projected_floats.data(), nullptr);
  bank.projected.floats = bank.projected_floats.data();
  bank.projected.num_rows = bank.rows.num_rows;
  bank.projected.width = rank + 1;
  measure_half_norms(bank.projected);
  return bank;
}

ScoringStatistics nearest_neighbor_scoring(const float* queries, int64_t num_queries,
                                           const Bank& bank, float* distances, int64_t* indices) {
  const int64_t width = bank.rows.width, block = block_size(bank.rows.num_rows);
  const int64_t num_groups = (bank.rows.num_rows + kGroupRows - 1) / kGroupRows;
  ScoringStatistics statistics;
  std::vector<Nearest> nearest(num_queries);
  AlignedFloats memory;
  if (bank.projection.rank > 0) {
    const int64_t max_groups = num_groups * kGroupRows * width / kScatteredCost /
                               (kGroupRows * bank.projected.width + 2 * width);
    AlignedFloats projected;
    for (int64_t first = 0; first < num_queries; first += block) {
      const float* part = queries + first * width;
      const BoundQueries bound = projected_queries(
          bank.projection, part, std::min(block, num_queries - first), width, projected);
      const BlockSearch search{part, bank.rows, bound, bank.projected, max_groups};
      add(statistics, search.run(nearest.data() + first, memory));
    }
  }
  std::vector<int64_t> left;
  for (int64_t query = 0; query < num_queries; ++query) {
    if (nearest[query].squared_distance == kInfinity) left.push_back(query);
  }
  AlignedFloats gathered;
  std::vector<Nearest> found(std::min<int64_t>(block, left.size()));
  for (std::size_t first = 0; first < left.size(); first += block) {
    const int64_t count = std::min<int64_t>(block, left.size() - first);
    const float* part = queries + left[first] * width;
    if (left[first + count - 1] - left[first] != count - 1) {
      gathered.resize(count * width);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(gathered.data() + i * width, queries + left[first + i] * width,
                    width * sizeof(float));
      }
      part = gathered.data();
    }
    const BoundQueries bound = plain_queries(part, count, width);
    const BlockSearch search{part, bank.rows, bound, bank.rows, num_groups};
    add(statistics, search.run(found.data(), memory));
    for (int64_t i = 0; i < count; ++i) nearest[left[first + i]] = found[i];
  }
  for (int64_t query = 0; query < num_queries; ++query) {
    distances[query] = static_cast<float>(std::sqrt(nearest[query].squared_distance));
    indices[query] = nearest[query].index;
  }
  return statistics;
}

// One pass over the bound rows (the projected ones where there are, else the bank) gives a lower
// bound of every distance. The rows with the smallest bounds are measured first, then all that
// these do not exclude.
int64_t nearest_rows(const float* query, const Bank& bank, int64_t count, int64_t exclude,
                     float* distances, int64_t* indices) {
  const BankRows& rows = bank.rows;
  const bool is_projected = bank.projection.rank > 0;
  const BankRows& bound_rows = is_projected ? bank.projected : rows;
  AlignedFloats projected;
  const BoundQueries bound =
      is_projected ? projected_queries(bank.projection, query, 1, rows.width, projected)
                   : plain_queries(query, 1, rows.width);
  const std::vector<float> rough = rough_squared_distances(bound.rows, bound_rows);
  std::vector<int64_t> order;
  order.reserve(rows.num_rows);
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    if (row != exclude) order.push_back(row);
  }
  count = std::min<int64_t>(count, order.size());
  if (count == 0) return 0;
  const auto is_more_promising = [&](int64_t a, int64_t b) { return rough[a] < rough[b]; };
  std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), is_more_promising);
  NearestRows nearest(count);
  AlignedFloats scratch(rows.halves ? rows.width : 0);
  double limit = kInfinity;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (!(rough[order[i]] <= limit)) continue;
    nearest.offer(squared_distance(query, row_of(rows, order[i], scratch.data()), rows.width),
                  order[i]);
    const double farthest = nearest.found.back().squared_distance;
    if (farthest < kInfinity) {
      limit = limits_of(farthest, bound.squared_norms[0], bound.lengths[0], bound.coordinate_error,
                        bound_rows.width)
                  .rough;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    distances[i] = static_cast<float>(std::sqrt(nearest.found[i].squared_distance));
    indices[i] = nearest.found[i].index;
  }
  return count;
}

}  // namespace mmad_fast
