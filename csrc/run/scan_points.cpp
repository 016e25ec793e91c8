// Repeated points are found by counting hashes, in so many counters that without repetition none
// reaches the number that makes a mark: a scan is done after one pass then. Where one does, the
// points behind it are counted exactly.
#include "run/scan_points.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <unordered_map>

#include "common/parallel.h"

namespace mmad_fast {
namespace {

using Point = std::array<float, 3>;

// A scan of more pixels has up to 8 per counter, of which 40 meet practically never, and counters
// that fit the cache.
constexpr int64_t kManyPixels = 1 << 17;
constexpr int64_t min_repeats(int64_t num_pixels) { return num_pixels > kManyPixels ? 40 : 16; }
// Times the usual number of pixels of a point. Real scans rounded to 1-10 mm, up to 270 pixels per
// point, have points with 8 times the usual number, no more.
constexpr int64_t kRepeatsOverUsual = 16;
constexpr std::size_t kMinPoints = 256;  // that tell what is usual
// A point at as large a part of the pixels is not usual but a mark, also where nothing else is
// there: a camera that saw nothing, and says so in up to so many ways.
constexpr int64_t kFewMarks = 4;
constexpr int kMaxRounds = 32;
constexpr std::size_t kMaxMarks = 8;
constexpr int64_t kMaxParts = 4;
constexpr int64_t kBlock = 1 << 11;
constexpr int64_t kGrain = 1 << 15;
constexpr int64_t kSampleSize = 1 << 11;
constexpr int64_t kMinSample = 1 << 9;
constexpr uint8_t kSaturated = 255;
// Share of pixels with x, or y, of exactly 0 that no cross of a row and a column has.
constexpr double kZeroShare = 0.2;
constexpr int kHeightAxis = 2;  // a plane at height 0 may be most of a scan
constexpr int kMaxStrays = 4;   // beyond a mark on an axis, that hide it
// In the file's unit.
constexpr float kKnownMarks[] = {-1,     -99,    -100, -999,  -1000, -9999, -32768,
                                 -99999, 999.0f, 9999, 32767, 65535, 99999};
constexpr float kAny = std::numeric_limits<float>::quiet_NaN();

uint64_t hash(const float* point) {
  uint32_t bits[3];
  std::memcpy(bits, point, sizeof bits);
  const uint64_t first = bits[0] | static_cast<uint64_t>(bits[1]) << 32;
  const uint64_t mixed = (first ^ (first >> 29)) * 0x9E3779B97F4A7C15ull + bits[2];
  return (mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93ull;
}

struct PointHash {
  std::size_t operator()(const Point& point) const { return hash(point.data()); }
};

bool is_measured(const float* point) { return (point[0] != 0) | (point[1] != 0) | (point[2] != 0); }
void clear(float* point) { point[0] = point[1] = point[2] = 0; }

// Of the measured pixels. Zeros are counted and do not lie between low and high.
struct Bounds {
  int64_t num_measured = 0;
  Point low{INFINITY, INFINITY, INFINITY};
  Point high{-INFINITY, -INFINITY, -INFINITY};
  std::array<int64_t, 3> num_zeros{};

  Bounds& operator+=(const Bounds& other) {
    num_measured += other.num_measured;
    for (int axis = 0; axis < 3; ++axis) {
      low[axis] = std::min(low[axis], other.low[axis]);
      high[axis] = std::max(high[axis], other.high[axis]);
      num_zeros[axis] += other.num_zeros[axis];
    }
    return *this;
  }
  bool has_lone_zero() const { return num_zeros[0] + num_zeros[1] + num_zeros[2] > 0; }
  bool reaches(double limit) const {
    return std::max({high[0], high[1], high[2], -low[0], -low[1], -low[2]}) > limit;
  }
};

// Sums what `body`(begin, end) returns over the pixels.
template <typename Sum, typename Body>
Sum sum_over(int64_t num_pixels, const Body& body) {
  Sum sum{};
  std::mutex mutex;
  parallel_for(num_pixels, kGrain, [&](int64_t begin, int64_t end) {
    const Sum part = body(begin, end);
    const std::lock_guard<std::mutex> lock(mutex);
    sum += part;
  });
  return sum;
}

// What is said of some points at a time, four abreast and without branches, so that it vectorises.
class Summary {
 public:
  Summary() {
    low_.fill(INFINITY);
    high_.fill(-INFINITY);
  }

  void add(const float* metres, int64_t begin, int64_t end, float missing) {
    // Locals, which stay in registers.
    auto low = low_, high = high_;
    auto num_zeros = num_zeros_, num_bad = num_bad_;
    const auto add = [&](int lane, float value) {
      const float above = value == 0 ? INFINITY : value, below = value == 0 ? -INFINITY : value;
      low[lane] = above < low[lane] ? above : low[lane];
      high[lane] = below > high[lane] ? below : high[lane];
      num_zeros[lane] += value == 0;
      num_bad[lane] += !(value - value == 0) | (value == missing);
    };
    int64_t i = 3 * begin;
    for (; i + kLanes <= 3 * end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) add(lane, metres[i + lane]);
    }
    for (int lane = 0; i < 3 * end; ++i, ++lane) add(lane, metres[i]);
    low_ = low, high_ = high, num_zeros_ = num_zeros, num_bad_ = num_bad;
  }

  // Whether a coordinate is not finite, or missing.
  bool has_bad() const {
    return std::any_of(num_bad_.begin(), num_bad_.end(), [](int32_t count) { return count > 0; });
  }

  Bounds bounds(int64_t num_measured, int64_t num_points) const {
    Bounds bounds;
    bounds.num_measured = num_measured;
    for (int lane = 0; lane < kLanes; ++lane) {
      bounds.low[lane % 3] = std::min(bounds.low[lane % 3], low_[lane]);
      bounds.high[lane % 3] = std::max(bounds.high[lane % 3], high_[lane]);
      bounds.num_zeros[lane % 3] += num_zeros_[lane];
    }
    for (int64_t& zeros : bounds.num_zeros) zeros -= num_points - num_measured;
    return bounds;
  }

 private:
  static constexpr int kLanes = 12;
  std::array<float, kLanes> low_, high_;
  std::array<int32_t, kLanes> num_zeros_{}, num_bad_{};
};

Bounds bounds_of(const float* metres, int64_t num_pixels) {
  return sum_over<Bounds>(num_pixels, [&](int64_t begin, int64_t end) {
    Summary summary;
    summary.add(metres, begin, end, kAny);
    int64_t num_measured = 0;
    for (int64_t i = begin; i < end; ++i) num_measured += is_measured(metres + 3 * i);
    return summary.bounds(num_measured, end - begin);
  });
}

// Saturating counters of points by their hash.
class Counters {
 public:
  explicit Counters(int64_t num_pixels) {
    int bits = 10;
    const int64_t least = std::min(num_pixels, std::max(num_pixels / 8, kManyPixels));
    while (int64_t{1} << bits < least) ++bits;
    counts_.resize(std::size_t{1} << bits);
    shift_ = 64 - bits;
  }

  uint8_t operator[](const float* point) const { return counts_[hash(point) >> shift_]; }

  void forget(const float* point) { counts_[hash(point) >> shift_] = 0; }

  // Returns the number of measured points.
  int64_t count(const float* metres, int64_t begin, int64_t end) {
    // Locals: a write to a counter may be a write to any member, as far as a compiler knows.
    uint8_t* const counts = counts_.data();
    const int shift = shift_;
    int64_t num_measured = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (!is_measured(metres + 3 * i)) continue;
      uint8_t& counter = counts[hash(metres + 3 * i) >> shift];
      counter = static_cast<uint8_t>(counter + (counter != kSaturated));
      ++num_measured;
    }
    return num_measured;
  }

  void add(const Counters& other) {
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      counts_[i] = static_cast<uint8_t>(std::min(counts_[i] + other.counts_[i], int{kSaturated}));
    }
  }

  uint8_t most() const {
    uint8_t most = 0;
    for (const uint8_t count : counts_) most = std::max(most, count);
    return most;
  }

 private:
  std::vector<uint8_t> counts_;
  int shift_;
};

// Clears a point with a coordinate that is not finite or equals `missing`; counts the latter by the
// first axis. (0, 0, 0) is missing anyway.
void clear_if_bad(float* point, float missing, std::array<int64_t, 3>& num_missing) {
  const float sum = (point[0] - point[0]) + (point[1] - point[1]) + (point[2] - point[2]);
  const float* equal = std::find(point, point + 3, missing);
  if (sum == 0 && equal == point + 3) return;
  if (sum == 0 && is_measured(point)) ++num_missing[equal - point];
  clear(point);
}

// What is gathered while points are converted.
struct Part {
  explicit Part(int64_t num_pixels) : counters(num_pixels) {}
  void add(const Part& other) {
    counters.add(other.counters);
    bounds += other.bounds;
    for (int axis = 0; axis < 3; ++axis) num_missing[axis] += other.num_missing[axis];
  }

  Counters counters;
  Bounds bounds;
  std::array<int64_t, 3> num_missing{};
};

// The points in metres, finite, in blocks that fit the cache: converted first, so that what is
// checked is our own copy.
template <typename T>
void convert(const T* raw, int64_t begin, int64_t end, double units_per_metre, float missing,
             float* metres, Part* part) {
  const auto divisor = static_cast<T>(units_per_metre);
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t stop = std::min(start + kBlock, end);
    // A quotient of two float32 is correctly rounded, and so is that of two float64 but for double
    // rounding. Adding 0 makes -0 to 0.
    for (int64_t i = 3 * start; i < 3 * stop; ++i) {
      metres[i] = static_cast<float>(raw[i] / divisor) + 0.0f;
    }
    Summary summary;
    summary.add(metres, start, stop, missing);
    if (summary.has_bad()) {
      for (int64_t i = start; i < stop; ++i) {
        clear_if_bad(metres + 3 * i, missing, part->num_missing);
      }
      summary = Summary();
      summary.add(metres, start, stop, missing);
    }
    const int64_t num_measured = part->counters.count(metres, start, stop);
    part->bounds += summary.bounds(num_measured, stop - start);
  }
}

// At how many pixels the point of the pixel in the middle stands: in a large scan, of one point in
// 64, where these are enough. A point weighs 255 at most, so that a mark at most pixels is not what
// is usual.
int64_t usual_repeats(const float* metres, int64_t num_pixels) {
  std::unordered_map<Point, int64_t, PointHash> counts;
  int64_t num_measured = 0;
  const auto count_one_in = [&](uint64_t number) {
    counts.clear();
    num_measured = 0;
    for (int64_t i = 0; i < num_pixels; ++i) {
      const float* point = metres + 3 * i;
      if (!is_measured(point)) continue;
      ++num_measured;
      if ((hash(point) >> 8) % number == 0) ++counts[{point[0], point[1], point[2]}];
    }
  };
  if (num_pixels > kManyPixels) count_one_in(64);
  if (counts.size() < kMinPoints) count_one_in(1);
  std::vector<int64_t> repeats;
  int64_t total = 0, below = 0;
  for (const auto& [point, count] : counts) {
    if (kFewMarks * count >= num_measured) continue;
    repeats.push_back(count);
    total += std::min<int64_t>(count, kSaturated);
  }
  std::sort(repeats.begin(), repeats.end());
  for (const int64_t count : repeats) {
    below += std::min<int64_t>(count, kSaturated);
    if (2 * below >= total) return count;
  }
  return 1;
}

// Clears the points that stand at many pixels.
std::vector<MissingMark> clear_repeated_points(float* metres, int64_t num_pixels,
                                               Counters* counters) {
  const int64_t least = min_repeats(num_pixels);
  if (counters->most() < least) return {};
  const int64_t repeats = std::max(least, kRepeatsOverUsual * usual_repeats(metres, num_pixels));
  const auto suspicious = static_cast<uint8_t>(std::min<int64_t>(repeats, kSaturated));
  std::unordered_map<Point, int64_t, PointHash> counts;
  struct Run {
    int64_t begin, end;
    int64_t* count;  // of its point
  };
  std::vector<Run> runs;
  for (int64_t i = 0; i < num_pixels;) {
    const float* point = metres + 3 * i;
    const int64_t begin = i++;
    if (!is_measured(point) || (*counters)[point] < suspicious) continue;
    // Finite and without -0: what is equal is so bit by bit.
    const float x = point[0], y = point[1], z = point[2];
    while (i < num_pixels && metres[3 * i] == x && metres[3 * i + 1] == y &&
           metres[3 * i + 2] == z) {
      ++i;
    }
    int64_t& count = counts[{x, y, z}];
    count += i - begin;
    runs.push_back({begin, i, &count});
  }
  for (const Run& run : runs) {
    if (*run.count >= repeats) std::fill(metres + 3 * run.begin, metres + 3 * run.end, 0.0f);
  }
  std::vector<MissingMark> marks;
  for (const auto& [point, count] : counts) {
    if (count < repeats) continue;
    marks.push_back({point, count});
    counters->forget(point.data());
  }
  std::sort(marks.begin(), marks.end(), [](const MissingMark& a, const MissingMark& b) {
    return a.num_pixels != b.num_pixels ? a.num_pixels > b.num_pixels : a.value < b.value;
  });
  return marks;
}

// Measured points, evenly spread over the pixels.
std::vector<Point> sample_of(const float* metres, int64_t num_pixels) {
  std::vector<Point> sample;
  const auto take = [&](int64_t step) {
    sample.clear();
    for (int64_t i = 0; i < num_pixels; i += step) {
      const float* point = metres + 3 * i;
      if (is_measured(point)) sample.push_back({point[0], point[1], point[2]});
    }
  };
  const int64_t step = (num_pixels / kSampleSize) | 1;  // odd: not always the same columns
  take(step);
  if (static_cast<int64_t>(sample.size()) < kMinSample && step > 1) take(1);
  return sample;
}

float quantile(std::vector<float>& values, double share) {
  const auto place = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + place, values.end());
  return values[place];
}

struct Range {
  float low, high;
  float length() const { return high - low; }
};

// Where 98 of 100 of the sample lie on an axis, of the points that have another value than `value`
// on `left_out`; nothing where all have it.
std::optional<Range> range_of(const std::vector<Point>& sample, int axis, int left_out,
                              float value) {
  std::vector<float> values;
  values.reserve(sample.size());
  for (const Point& point : sample) {
    if (point[left_out] != value) values.push_back(point[axis]);
  }
  if (values.empty()) return std::nullopt;
  const float low = quantile(values, 0.01);
  return Range{low, quantile(values, 0.99)};
}

// Whether a value lies farther from the others of its axis than these from each other, and than
// half of what they reach: the top of a part is nearer to its table. If so, how far.
std::optional<float> gap_to_others(const std::vector<Point>& sample, int axis, float value) {
  const auto others = range_of(sample, axis, axis, value);
  if (!others) return std::nullopt;
  const float gap = std::max(others->low - value, value - others->high);
  const float reach = std::max(std::abs(others->low), std::abs(others->high));
  if (gap > others->length() && gap > reach / 2) return gap;
  return std::nullopt;
}

bool is_far_outside(const std::vector<Point>& sample, int axis, float value,
                    double units_per_metre) {
  const auto gap = gap_to_others(sample, axis, value);
  if (!gap) return false;
  for (const float known : kKnownMarks) {
    if (value == static_cast<float>(known / units_per_metre)) return true;
  }
  for (int other = 0; other < 3; ++other) {
    if (*gap <= range_of(sample, other, axis, value)->length()) return false;
  }
  return true;
}

// The outermost value other than 0 on a side of an axis within `bound`.
float outermost(const float* metres, int64_t num_pixels, int axis, bool is_low, float bound) {
  float found = is_low ? INFINITY : -INFINITY;
  for (int64_t i = 0; i < num_pixels; ++i) {
    const float value = metres[3 * i + axis];
    if (value == 0) continue;
    if (is_low && value > bound) found = std::min(found, value);
    if (!is_low && value < bound) found = std::max(found, value);
  }
  return found;
}

int64_t count_value(const float* metres, int64_t num_pixels, int axis, float value) {
  return sum_over<int64_t>(num_pixels, [&](int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) {
      count += metres[3 * i + axis] == value && is_measured(metres + 3 * i);
    }
    return count;
  });
}

MissingMark mark_on(int axis, float value, int64_t num_pixels) {
  MissingMark mark{{kAny, kAny, kAny}, num_pixels};
  mark.value[axis] = value;
  return mark;
}

// A value of one axis that stands for no measurement, or nothing; see read_points.
std::optional<MissingMark> mark_on_axis(const float* metres, int64_t num_pixels, int axis,
                                        const Bounds& bounds, const std::vector<Point>& sample,
                                        double units_per_metre) {
  const int64_t num_zeros = bounds.num_zeros[axis];
  const bool has_too_many =
      axis != kHeightAxis &&
      static_cast<double>(num_zeros) > kZeroShare * static_cast<double>(bounds.num_measured);
  if (num_zeros > 0 && (has_too_many || gap_to_others(sample, axis, 0))) {
    return mark_on(axis, 0, num_zeros);
  }
  for (const bool is_low : {true, false}) {
    float value = is_low ? bounds.low[axis] : bounds.high[axis];
    for (int stray = 0; stray < kMaxStrays && std::isfinite(value); ++stray) {
      if (!is_far_outside(sample, axis, value, units_per_metre)) break;
      const int64_t count = count_value(metres, num_pixels, axis, value);
      if (count >= min_repeats(num_pixels)) return mark_on(axis, value, count);
      value = outermost(metres, num_pixels, axis, is_low, value);
    }
  }
  return std::nullopt;
}

bool matches(const float* point, const Point& mark) {
  return (point[0] == mark[0] || std::isnan(mark[0])) &&
         (point[1] == mark[1] || std::isnan(mark[1])) &&
         (point[2] == mark[2] || std::isnan(mark[2]));
}

void clear_mark(float* metres, int64_t num_pixels, const Point& mark) {
  parallel_for(num_pixels, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (matches(metres + 3 * i, mark)) clear(metres + 3 * i);
    }
  });
}

// Clears what lies too far and moves measured zeros.
void finish_points(float* metres, int64_t num_pixels) {
  parallel_for(num_pixels, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* point = metres + 3 * i;
      if (!is_measured(point)) continue;
      float extent = 0;
      for (int axis = 0; axis < 3; ++axis) {
        extent = std::max(extent, std::abs(point[axis]));
        if (point[axis] == 0) point[axis] = kLoneZeroMetres;
      }
      if (extent > kMaxPlausibleMetres) clear(point);
    }
  });
}

// The part of all pixels.
template <typename T>
Part convert_all(const T* raw, int64_t num_pixels, double units_per_metre, float missing,
                 float* metres) {
  const int64_t num_parts =
      std::clamp<int64_t>(num_pixels / kGrain, 1, std::min<int64_t>(num_threads(), kMaxParts));
  std::vector<Part> parts(num_parts, Part(num_pixels));
  parallel_for(num_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      convert(raw, part * num_pixels / num_parts, (part + 1) * num_pixels / num_parts,
              units_per_metre, missing, metres, &parts[part]);
    }
  });
  for (int64_t part = 1; part < num_parts; ++part) parts[0].add(parts[part]);
  return std::move(parts[0]);
}

}  // namespace

template <typename T>
ScanPoints read_points(const T* raw, int64_t num_pixels, double units_per_metre,
                       const std::optional<double>& missing, float* metres) {
  // As float32 first: that is what a file of single precision holds of it. NaN equals nothing.
  const auto known =
      static_cast<float>(static_cast<float>(missing.value_or(kAny)) / units_per_metre) + 0.0f;
  Part all = convert_all(raw, num_pixels, units_per_metre, known, metres);
  ScanPoints points;
  for (int axis = 0; missing && axis < 3; ++axis) {
    points.marks.push_back(mark_on(axis, known, all.num_missing[axis]));
  }
  std::vector<MissingMark> found;
  std::vector<Point> sample = sample_of(metres, num_pixels);
  // What is usual, and what is far from the others, shows when what is at most pixels is gone.
  for (int round = 0; round < kMaxRounds; ++round) {
    auto marks = clear_repeated_points(metres, num_pixels, &all.counters);
    for (int axis = 0; axis < 3 && marks.empty(); ++axis) {
      const auto mark = mark_on_axis(metres, num_pixels, axis, all.bounds, sample, units_per_metre);
      if (!mark) continue;
      clear_mark(metres, num_pixels, mark->value);
      marks.push_back(*mark);
    }
    if (marks.empty()) break;
    found.insert(found.end(), marks.begin(), marks.end());
    all.bounds = bounds_of(metres, num_pixels);
    sample = sample_of(metres, num_pixels);
  }
  std::stable_sort(found.begin(), found.end(), [](const MissingMark& a, const MissingMark& b) {
    return a.num_pixels > b.num_pixels;
  });
  found.resize(std::min(found.size(), kMaxMarks));
  points.marks.insert(points.marks.end(), found.begin(), found.end());
  std::vector<float> extents;
  for (const Point& point : sample) {
    extents.push_back(std::max({std::abs(point[0]), std::abs(point[1]), std::abs(point[2])}));
  }
  points.median_m = extents.empty() ? kAny : quantile(extents, 0.5);
  if (all.bounds.has_lone_zero() || all.bounds.reaches(kMaxPlausibleMetres)) {
    finish_points(metres, num_pixels);
  }
  return points;
}

template ScanPoints read_points(const float*, int64_t, double, const std::optional<double>&,
                                float*);
template ScanPoints read_points(const double*, int64_t, double, const std::optional<double>&,
                                float*);

int64_t clear_marks(const float* metres, int64_t num_pixels,
                    const std::vector<std::array<double, 3>>& marks, double units_per_metre,
                    float* cleared) {
  std::vector<Point> values;
  for (const auto& mark : marks) {
    Point value;
    for (int axis = 0; axis < 3; ++axis) {
      value[axis] = static_cast<float>(mark[axis] / units_per_metre);
      if (value[axis] == 0) value[axis] = kLoneZeroMetres;
    }
    values.push_back(value);
  }
  return sum_over<int64_t>(num_pixels, [&](int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) {
      const float* point = metres + 3 * i;
      const bool is_marked = is_measured(point) &&
                             std::any_of(values.begin(), values.end(),
                                         [&](const Point& value) { return matches(point, value); });
      count += is_marked;
      if (is_marked && cleared != nullptr) clear(cleared + 3 * i);
    }
    return count;
  });
}

}  // namespace mmad_fast
