// Lazy greedy selection, in phases. Distances to the nearest selected row only shrink, so a row
// whose distance was below the phase's radius when it was last looked at cannot be selected in it.
// 1. A radius is chosen so that about kActiveRows rows are beyond it. Rows that seem beyond it but
//    do not know the latest selected rows are brought up to date: a matrix product bounds their
//    distances to all rows selected since (as in nearest_neighbor_scoring), and the pairs that the
//    bound does not exclude are measured in float64. Threads take batches of such rows.
// 2. Plain steps select among the active rows, which stay in the second level cache in groups of
//    kLanes columns, until none of them is beyond the radius. A step excludes by float32 sums, over
//    kDepthStep coordinates at a time, and measures what is left in float64.
// Bounds are those of the rows or, where that helps, of rows projected to a few directions plus the
// length of the rest, whose distances are never longer. They are float32 and account for their
// rounding (README.md), so that the result depends neither on the number of threads nor on the
// instruction set. Memory: 16 bytes per row, one projected row each, lists of those that seem
// beyond the radius, and a copy of the selected ones; rows are read where they lie.
#include <algorithm>
#include <atomic>
#include <cfloat>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "common/sum_squares.h"
#include "k_center_greedy/op.h"
#include "nearest_neighbor_scoring/op.h"

namespace mmad_fast {
namespace k_center_kernels {

constexpr int64_t kVector = 16;
constexpr int64_t kLanes = 64;  // active rows of a group: four independent sums in registers
constexpr int64_t kDepthStep = 16;
constexpr int64_t kGroupCenters = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

// Bit g: for one of kVector columns the largest products[row * stride] - half_norms[row] of group g
// of kGroupCenters rows is not below the column's threshold; a NaN never is the largest.
MMAD_FAST_MULTIVERSION uint32_t reaching_groups(const float* products, int64_t stride,
                                                const float* half_norms, int64_t num_rows,
                                                const float* thresholds) {
  Floats limits;
  std::memcpy(&limits, thresholds, sizeof(limits));
  uint32_t reaching = 0;
  for (int64_t first = 0; first < num_rows; first += kGroupCenters) {
    Floats maximum = Floats{} - std::numeric_limits<float>::infinity();
    const int64_t end = first + kGroupCenters < num_rows ? first + kGroupCenters : num_rows;
    for (int64_t row = first; row < end; ++row) {
      Floats value;
      std::memcpy(&value, products + row * stride, sizeof(value));
      value -= half_norms[row];
      maximum = value > maximum ? value : maximum;
    }
    const Ints reaches = maximum >= limits;
    int32_t any = 0;
    for (int64_t lane = 0; lane < kVector; ++lane) any |= reaches[lane];
    reaching |= static_cast<uint32_t>(any & 1) << (first / kGroupCenters);
  }
  return reaching;
}

// Bit i: the squared distance of column i of kLanes to the center is at most limits[i]. Columns are
// depth x kLanes; at most depth + 3 roundings on the way of every term.
MMAD_FAST_MULTIVERSION uint64_t near_lanes(const float* columns, int64_t depth, const float* center,
                                           const float* limits) {
  constexpr int kVectors = kLanes / kVector;
  Floats sums[kVectors], bounds[kVectors];
  std::memcpy(bounds, limits, sizeof(bounds));
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums[v] = Floats{};
  for (int64_t first = 0; first < depth; first += kDepthStep) {
    const int64_t end = first + kDepthStep < depth ? first + kDepthStep : depth;
    for (int64_t d = first; d < end; ++d) {
      const float coordinate = center[d];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        Floats difference;
        std::memcpy(&difference, columns + d * kLanes + v * kVector, sizeof(difference));
        difference -= coordinate;
        sums[v] += difference * difference;
      }
    }
    Ints near = Ints{};
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) near |= sums[v] <= bounds[v];
    int32_t any = 0;
    for (int64_t lane = 0; lane < kVector; ++lane) any |= near[lane];
    if (!any) return 0;
  }
  uint64_t mask = 0;
  for (int v = 0; v < kVectors; ++v) {
    const Ints near = sums[v] <= bounds[v];
    for (int64_t lane = 0; lane < kVector; ++lane) {
      mask |= static_cast<uint64_t>(near[lane] & 1) << (v * kVector + lane);
    }
  }
  return mask;
}

}  // namespace k_center_kernels

namespace {

using namespace k_center_kernels;

constexpr int64_t kActiveRows = 1024;            // of a phase, at most
constexpr int64_t kPoolRows = 32 * kActiveRows;  // among which they are looked for
constexpr int64_t kMaxBatch = 384;               // rows that a thread brings up to date together
constexpr int64_t kMinBatch = 48;                //
constexpr int64_t kSliceFloats = 1 << 24;        // of rows, between two looks at the clock
constexpr double kThreadTerms = 2e9;  // of matrix products, per thread between two such looks
constexpr std::chrono::milliseconds kReportEvery{100};
constexpr double kRounding = FLT_EPSILON / 2;
constexpr double kOverflow = 1e37;  // squared lengths from here on may overflow in float32
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// The smallest float that is not below a value >= 0, or the next one.
float float_above(double value) {
  return value < FLT_MAX ? std::nextafter(static_cast<float>(value), kInfinity) : kInfinity;
}

float distance_of(double squared) { return static_cast<float>(std::sqrt(squared)); }

// The rows that bounds are computed from: the rows themselves, or projected ones.
struct BoundRows {
  const float* rows;
  int64_t width;
  double coordinate_error;  // of a projected row, relative to its length

  const float* row(int64_t index) const { return rows + index * width; }
};

// Rounding bounds (README.md) for rows that are as near to a row as the nearest selected one.
class Reach {
 public:
  Reach() = default;
  Reach(const BoundRows& bound, int64_t row, double nearest)
      : squared_norm_(sum_squares(bound.row(row), bound.width)) {
    update(bound, nearest);
  }

  void update(const BoundRows& bound, double nearest) {
    const double width = static_cast<double>(bound.width);
    const double norm = std::sqrt(squared_norm_), distance = std::sqrt(nearest);
    // A projected row is as long as the row is relative to the mean, up to coordinate_error.
    const double length = norm * (1 + 1e-4) + width * FLT_MIN;
    const double reach =
        (distance + bound.coordinate_error * (2 * length + distance)) * (1 + 1e-9) +
        width * FLT_MIN;
    const double row_norm = norm + reach;  // of a row in reach, at most
    threshold = -kInfinity;
    limit = kInfinity;
    if (row_norm * row_norm > kOverflow) return;
    const double terms =
        static_cast<double>(std::min(bound.width, kDepthBlock) + bound.width / kDepthBlock + 3);
    const double underflow = 2 * (width + 2) * FLT_MIN;
    const double error = 1.01 * kRounding * row_norm * ((terms + 1) * norm + row_norm) + underflow;
    const double lowest = (squared_norm_ - reach * reach) / 2 - error;
    threshold = static_cast<float>(lowest - 2 * kRounding * std::abs(lowest) - FLT_MIN);
    limit = float_above(reach * reach * (1 + 1.01 * (width + 8) * kRounding) + underflow);
  }

  float threshold;  // of products minus half norms: those below are further away
  float limit;      // of squared distances in float32: those above are further away

 private:
  double squared_norm_;
};

// Reports when it is asked for the first time, and then at most every kReportEvery.
class Reporter {
 public:
  explicit Reporter(const std::function<void(int64_t)>& report) : report_(report) {}

  void now(int64_t count) {
    report_(count);
    reported_ = std::chrono::steady_clock::now();
  }

  void now_and_then(int64_t count) {
    if (std::chrono::steady_clock::now() - reported_ >= kReportEvery) now(count);
  }

 private:
  const std::function<void(int64_t)>& report_;
  std::chrono::steady_clock::time_point reported_{};
};

// Calls body(first, end) for slices of the rows, which may have to be read from a disk, and
// reports in between.
template <typename Body>
void for_slices(int64_t num_rows, int64_t width, Reporter& reporter, int64_t count,
                const Body& body) {
  const int64_t slice = std::max<int64_t>(kSliceFloats / width, num_threads());
  for (int64_t first = 0; first < num_rows; first += slice) {
    body(first, std::min(num_rows, first + slice));
    reporter.now_and_then(count);
  }
}

class Selection {
 public:
  Selection(const float* rows, int64_t num_rows, int64_t width, const BoundRows& bound,
            int64_t num_samples, int64_t* indices, Reporter& reporter)
      : rows_(rows),
        num_rows_(num_rows),
        width_(width),
        bound_(bound),
        num_samples_(num_samples),
        indices_(indices),
        reporter_(reporter),
        nearest_(num_rows),
        distances_(num_rows),
        known_phases_(num_rows),
        rough_factor_(1 + 1.01 * static_cast<double>(width / kFloatLanes + 8) * kRounding),
        rough_underflow_(2 * static_cast<double>(width + 2) * FLT_MIN) {}

  SelectionStatistics run(int64_t start) {
    centers_.reserve(num_samples_ * bound_.width);
    select(start);
    measure_all(start);
    end_phase();
    while (count_ < num_samples_ && begin_phase()) {
      while (count_ < num_samples_) {
        const int64_t row = active_[farthest_active()];
        if (!is_beyond(row)) break;
        select(row);
        step();
        reporter_.now_and_then(count_);
      }
      end_phase();
    }
    reporter_.now(count_);
    statistics_.num_selected = count_;
    statistics_.measured_pairs = measured_pairs_;
    statistics_.bounded_pairs = bounded_pairs_;
    return statistics_;
  }

 private:
  void select(int64_t row) {
    indices_[count_++] = row;
    const float* center = bound_.row(row);
    centers_.insert(centers_.end(), center, center + bound_.width);
    const double half = sum_squares(center, bound_.width) / 2;
    half_norms_.push_back(half < FLT_MAX ? static_cast<float>(half) : kInfinity);
  }

  void measure_all(int64_t center) {
    for_slices(num_rows_, width_, reporter_, count_, [&](int64_t first, int64_t last) {
      parallel_for(last - first, 64, [&](int64_t begin, int64_t end) {
        for (int64_t row = first + begin; row < first + end; ++row) {
          nearest_[row] = squared_distance(rows_ + row * width_, rows_ + center * width_, width_);
          distances_[row] = distance_of(nearest_[row]);
        }
      });
    });
    measured_pairs_ += num_rows_;
  }

  // What is selected from here on is unknown to all rows, but those that are active then.
  void end_phase() {
    for (const int64_t row : active_) known_phases_[row] = phase_ + 1;
    if (phase_ == 0) std::fill(known_phases_.begin(), known_phases_.end(), 1);
    phase_starts_.push_back(count_);
    ++phase_;
  }

  // Chooses the radius and the active rows; false if no row is at a distance from the selected.
  bool begin_phase() {
    for (;;) {
      std::vector<float> beyond;
      for (const int64_t row : pool_) {
        if (distances_[row] >= pool_radius_) beyond.push_back(distances_[row]);
      }
      const int64_t size = static_cast<int64_t>(beyond.size());
      if (size < kActiveRows && !pool_is_complete_) {
        fill_pool();
        continue;
      }
      if (size == 0) return false;
      radius_ = pool_radius_;
      if (size > kActiveRows) {
        const auto wanted = beyond.begin() + (kActiveRows - 1);
        std::nth_element(beyond.begin(), wanted, beyond.end(), std::greater<float>());
        radius_ = *wanted;
      }
      if (!bring_up_to_date()) break;
      const int64_t left = std::count_if(pool_.begin(), pool_.end(),
                                         [&](int64_t row) { return distances_[row] >= radius_; });
      if (left >= kActiveRows / 2) break;
    }
    pack_active();
    ++statistics_.phases;
    return true;
  }

  // The rows that seem farthest from the selected.
  void fill_pool() {
    const auto is_apart = [](float distance) { return distance > 0; };
    std::vector<float> apart(std::count_if(distances_.begin(), distances_.end(), is_apart));
    std::copy_if(distances_.begin(), distances_.end(), apart.begin(), is_apart);
    pool_is_complete_ = static_cast<int64_t>(apart.size()) <= kPoolRows;
    pool_radius_ = std::numeric_limits<float>::denorm_min();
    if (!pool_is_complete_) {
      const auto wanted = apart.begin() + (kPoolRows - 1);
      std::nth_element(apart.begin(), wanted, apart.end(), std::greater<float>());
      pool_radius_ = *wanted;
    }
    pool_.clear();
    for (int64_t row = 0; row < num_rows_; ++row) {
      if (distances_[row] >= pool_radius_) pool_.push_back(row);
    }
  }

  // Lets all rows that seem beyond the radius know all selected ones; false if they all did.
  bool bring_up_to_date() {
    std::vector<int64_t> stale = stale_rows();
    const int64_t num_rows = static_cast<int64_t>(stale.size());
    const int64_t batch =
        std::clamp(round_up(num_rows / (4 * num_threads()), kMinBatch), kMinBatch, kMaxBatch);
    const int64_t num_batches = (num_rows + batch - 1) / batch;
    for (int64_t first = 0; first < num_batches;) {
      double terms = 0;
      int64_t end = first;
      for (; end < num_batches && terms < kThreadTerms * num_threads(); ++end) {
        terms += static_cast<double>(batch * bound_.width * unknown_centers(stale[end * batch]));
      }
      parallel_for(end - first, 1, [&](int64_t begin, int64_t) {
        const int64_t from = (first + begin) * batch;
        catch_up(stale.data() + from, std::min(batch, num_rows - from));
      });
      first = end;
      reporter_.now_and_then(count_);
    }
    return num_rows > 0;
  }

  // Those that know the least first.
  std::vector<int64_t> stale_rows() const {
    std::vector<int64_t> offsets(phase_ + 1);
    const auto is_stale = [&](int64_t row) {
      return distances_[row] >= radius_ && known_phases_[row] < phase_;
    };
    for (const int64_t row : pool_) {
      if (is_stale(row)) ++offsets[known_phases_[row] + 1];
    }
    for (int64_t phase = 0; phase < phase_; ++phase) offsets[phase + 1] += offsets[phase];
    std::vector<int64_t> stale(offsets[phase_]);
    for (const int64_t row : pool_) {
      if (is_stale(row)) stale[offsets[known_phases_[row]]++] = row;
    }
    return stale;
  }

  int64_t first_unknown(int64_t row) const { return phase_starts_[known_phases_[row] - 1]; }
  int64_t unknown_centers(int64_t row) const { return count_ - first_unknown(row); }

  // Rows of a batch, the first of which knows the least.
  void catch_up(const int64_t* rows, int64_t num_rows) {
    const int64_t width = bound_.width;
    AlignedFloats gathered(num_rows * width), thresholds(round_up(num_rows, kVector), kInfinity);
    std::vector<Reach> reaches(num_rows);
    for (int64_t i = 0; i < num_rows; ++i) {
      std::memcpy(gathered.data() + i * width, bound_.row(rows[i]), width * sizeof(float));
      reaches[i] = Reach(bound_, rows[i], nearest_[rows[i]]);
      thresholds[i] = reaches[i].threshold;
    }
    const PackedMatrix packed = pack_matrix(gathered.data(), num_rows, width, width);
    int64_t panels = 1;  // of a tile, which begins and ends with whole vectors
    while (panels * packed.panel_width % kVector != 0) ++panels;
    const int64_t stride = panels * packed.panel_width;
    AlignedFloats tile(kStripRows * stride);
    Strip strip(width);
    int64_t measured = 0;
    const int64_t first_center = first_unknown(rows[0]);
    for (int64_t center = first_center; center < count_; center += kStripRows) {
      const int64_t num_centers = std::min(kStripRows, count_ - center);
      strip.fill(centers_.data() + center * width, num_centers, width);
      for (int64_t panel = 0; panel < packed.num_panels(); panel += panels) {
        multiply_strip(strip, num_centers, packed, panel,
                       std::min(panel + panels, packed.num_panels()), tile.data(), stride);
        const int64_t first = panel * packed.panel_width;
        const int64_t columns = std::min(stride, num_rows - first);
        for (int64_t column = 0; column < columns; column += kVector) {
          const float* products = tile.data() + column;
          uint32_t groups = reaching_groups(products, stride, half_norms_.data() + center,
                                            num_centers, thresholds.data() + first + column);
          for (; groups != 0; groups &= groups - 1) {
            const int64_t group = __builtin_ctz(groups) * kGroupCenters;
            const int64_t size = std::min(kGroupCenters, num_centers - group);
            for (int64_t lane = 0; lane < std::min(kVector, columns - column); ++lane) {
              const int64_t i = first + column + lane;
              for (int64_t c = group; c < group + size; ++c) {
                const float value = products[c * stride + lane] - half_norms_[center + c];
                if (value < thresholds[i]) continue;  // not so for a NaN
                ++measured;
                if (measure(rows[i], indices_[center + c])) {
                  reaches[i].update(bound_, nearest_[rows[i]]);
                  thresholds[i] = reaches[i].threshold;
                }
              }
            }
          }
        }
      }
    }
    for (int64_t i = 0; i < num_rows; ++i) known_phases_[rows[i]] = phase_;
    measured_pairs_ += measured;
    bounded_pairs_ += num_rows * (count_ - first_center);
  }

  // True where the row is nearer to the center than to those it knows.
  bool measure(int64_t row, int64_t center) {
    const float *a = rows_ + row * width_, *b = rows_ + center * width_;
    const double nearest = nearest_[row];
    if (nearest < kOverflow &&
        rough_squared_distance(a, b, width_) > nearest * rough_factor_ + rough_underflow_) {
      return false;
    }
    const double squared = squared_distance(a, b, width_);
    if (!(squared < nearest)) return false;
    nearest_[row] = squared;
    distances_[row] = distance_of(squared);
    return true;
  }

  // Those of the up to date rows that are beyond the radius. Where very many are exactly at it, the
  // first of these: so the active rows do not grow with the number of rows.
  void pack_active() {
    int64_t left_at_radius = kActiveRows;
    for (const int64_t row : pool_) left_at_radius -= distances_[row] > radius_;
    active_.clear();
    end_at_radius_ = num_rows_;
    for (const int64_t row : pool_) {
      if (distances_[row] < radius_) continue;
      if (distances_[row] == radius_ && left_at_radius-- <= 0) {
        end_at_radius_ = std::min(end_at_radius_, row);
        continue;
      }
      active_.push_back(row);
    }
    const int64_t size = static_cast<int64_t>(active_.size()), width = bound_.width;
    const int64_t groups = (size + kLanes - 1) / kLanes;
    columns_.resize(groups * width * kLanes);
    limits_.assign(groups * kLanes, -1.0f);  // no distance is below that
    group_farthest_.resize(groups);
    reaches_.resize(size);
    for (int64_t group = 0; group < groups; ++group) {
      float* columns = columns_.data() + group * width * kLanes;
      const int64_t first = group * kLanes, last = std::min(size, first + kLanes);
      for (int64_t i = first; i < last; ++i) {
        const float* row = bound_.row(active_[i]);
        for (int64_t d = 0; d < width; ++d) columns[d * kLanes + i - first] = row[d];
        reaches_[i] = Reach(bound_, active_[i], nearest_[active_[i]]);
        limits_[i] = reaches_[i].limit;
      }
      find_farthest(group);
    }
  }

  // Whether an active row comes before all rows that are not active.
  bool is_beyond(int64_t row) const {
    return distances_[row] > radius_ || (distances_[row] == radius_ && row < end_at_radius_);
  }

  void find_farthest(int64_t group) {
    const int64_t first = group * kLanes;
    const int64_t end = std::min<int64_t>(first + kLanes, active_.size());
    int64_t best = first;
    for (int64_t i = first + 1; i < end; ++i) {
      if (distances_[active_[i]] > distances_[active_[best]]) best = i;
    }
    group_farthest_[group] = best;
  }

  // Of equals the first, which has the lowest index.
  int64_t farthest_active() const {
    int64_t best = group_farthest_[0];
    for (const int64_t other : group_farthest_) {
      if (distances_[active_[other]] > distances_[active_[best]]) best = other;
    }
    return best;
  }

  // Lets the active rows know the last selected one.
  void step() {
    const int64_t row = indices_[count_ - 1], width = bound_.width;
    const float* center = centers_.data() + (count_ - 1) * width;
    int64_t measured = 0;
    const int64_t num_groups = static_cast<int64_t>(group_farthest_.size());
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t first = group * kLanes;
      uint64_t near =
          near_lanes(columns_.data() + first * width, width, center, limits_.data() + first);
      if (near == 0) continue;
      for (; near != 0; near &= near - 1) {
        const int64_t i = first + __builtin_ctzll(near);
        ++measured;
        if (measure(active_[i], row)) {
          reaches_[i].update(bound_, nearest_[active_[i]]);
          limits_[i] = reaches_[i].limit;
        }
      }
      find_farthest(group);
    }
    measured_pairs_ += measured;
    statistics_.stepped_pairs += static_cast<int64_t>(active_.size());
  }

  const float* rows_;
  const int64_t num_rows_, width_;
  const BoundRows bound_;
  const int64_t num_samples_;
  int64_t* indices_;
  Reporter& reporter_;

  // Per row, relative to the selected rows of the phases that it knows: the nearest's squared
  // distance, and its distance.
  std::vector<double> nearest_;
  std::vector<float> distances_;
  std::vector<int32_t> known_phases_;
  const double rough_factor_, rough_underflow_;

  int64_t count_ = 0;      // of selected rows
  AlignedFloats centers_;  // as the bounds see them
  std::vector<float> half_norms_;
  int32_t phase_ = 0;
  std::vector<int64_t> phase_starts_;  // selected rows at the end of each phase

  // Rows whose distance is at least pool_radius_, or was when the pool was filled; all others are
  // nearer. Ascending, as active_ is.
  std::vector<int64_t> pool_;
  float pool_radius_ = kInfinity;
  bool pool_is_complete_ = false;  // all rows that are not at 0

  float radius_ = 0;
  int64_t end_at_radius_ = 0;  // rows that are exactly at the radius are beyond it below this
  std::vector<int64_t> active_;
  AlignedFloats columns_;  // per group [width][kLanes]
  AlignedFloats limits_;
  std::vector<Reach> reaches_;
  std::vector<int64_t> group_farthest_;

  SelectionStatistics statistics_;
  std::atomic<int64_t> measured_pairs_{0}, bounded_pairs_{0};
};

}  // namespace

SelectionStatistics k_center_greedy(const float* rows, int64_t num_rows, int64_t width,
                                    const SelectionProjection& projection, int64_t start,
                                    int64_t num_samples, int64_t* indices,
                                    const std::function<void(int64_t)>& report) {
  Reporter reporter(report);
  BoundRows bound{rows, width, 0.0};
  UninitializedVector<float> projected;
  if (projection.rank > 0) {
    bound.width = projection.rank + 1;
    bound.coordinate_error = coordinate_error(projection.rank, width);
    projected.resize(num_rows * bound.width);
    bound.rows = projected.data();
    const Projection directions =
        make_projection(projection.mean, projection.basis, width, projection.rank);
    for_slices(num_rows, width, reporter, 0, [&](int64_t first, int64_t end) {
      project_all(directions, {rows + first * width, nullptr, end - first, width, {}},
                  projected.data() + first * bound.width, nullptr);
    });
  }
  return Selection(rows, num_rows, width, bound, num_samples, indices, reporter).run(start);
}

}  // namespace mmad_fast
