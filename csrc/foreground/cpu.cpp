// The plane rule and exact DBSCAN by cells.
//
// DBSCAN: space is cut into cubes ("cells") whose diagonal is the radius, so all points of a cell
// are within the radius of each other: a cell with min_points points holds core points only, and no
// distance is computed for it. Cells that hold core points are joined when a pair of their core
// points lies within the radius; cells further than two steps apart never do. On a scan, where
// neighbouring pixels are much nearer than the radius, nearly all cells are decided by their count
// and the first pair, and the work is linear in the points. Cells stand in a hash table, with the
// indices of points sorted by cell. Distances are double, of float coordinates: the comparison with
// the radius is exact to the last bits and the same on every machine.
//
// Two cells of many points that face each other without touching would take all pairs. They are
// halved instead, again and again (PointTree); a pair of parts is left out where the boxes are too
// far apart, or where some direction separates the points by more than the radius. Boxes alone do
// not separate two tilted sheets that are a little more than the radius apart; directions leave of
// them the parts that face each other: a number that does not depend on their size.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "foreground/op.h"

namespace mmad_fast {
namespace {

constexpr int64_t kPixelGrain = 1 << 15;
constexpr int64_t kPointGrain = 1 << 13;
constexpr int64_t kCellGrain = 64;
constexpr int64_t kProbes = 8;
constexpr int64_t kPairsWithoutTree = 1 << 14;
constexpr int64_t kPointsWithoutTree = 1 << 10;
constexpr int64_t kLeafPoints = 16;
constexpr int kSeparationSteps = 4;
constexpr int64_t kComparable = 8;  // looking for a direction costs the points of both
constexpr int kKeyBits = 21;
constexpr int64_t kKeyOffset = int64_t{1} << (kKeyBits - 1);

struct Offset {
  int x, y, z;
};

// The cells in which a point within the radius of this cell may lie, itself excluded, nearest
// first.
std::vector<Offset> neighbor_offsets() {
  std::vector<Offset> offsets;
  for (int x = -2; x <= 2; ++x)
    for (int y = -2; y <= 2; ++y)
      for (int z = -2; z <= 2; ++z)
        if (x != 0 || y != 0 || z != 0) offsets.push_back({x, y, z});
  const auto squared = [](const Offset& o) { return o.x * o.x + o.y * o.y + o.z * o.z; };
  std::stable_sort(offsets.begin(), offsets.end(),
                   [&](const Offset& a, const Offset& b) { return squared(a) < squared(b); });
  return offsets;
}

// A sum, not an or: the key of a neighbour is the key of the cell plus the packed (signed) offset.
uint64_t pack(int64_t x, int64_t y, int64_t z) {
  return static_cast<uint64_t>(x * (int64_t{1} << (2 * kKeyBits)) + y * (int64_t{1} << kKeyBits) +
                               z);
}

// Open addressing, grows at half load.
class CellTable {
 public:
  CellTable() : slots_(1 << 12, -1) {}

  int32_t find(uint64_t key) const {
    for (uint64_t slot = hash(key);; ++slot) {
      const int32_t cell = slots_[slot & mask()];
      if (cell < 0 || keys_[cell] == key) return cell;
    }
  }

  int32_t find_or_add(uint64_t key) {
    uint64_t slot = hash(key);
    for (;; ++slot) {
      const int32_t cell = slots_[slot & mask()];
      if (cell < 0) break;
      if (keys_[cell] == key) return cell;
    }
    const int32_t added = static_cast<int32_t>(keys_.size());
    slots_[slot & mask()] = added;
    keys_.push_back(key);
    if (keys_.size() * 2 > slots_.size()) grow();
    return added;
  }

  uint64_t key(int32_t cell) const { return keys_[cell]; }
  int64_t size() const { return static_cast<int64_t>(keys_.size()); }

 private:
  uint64_t mask() const { return slots_.size() - 1; }
  // Fibonacci hashing: the upper half of the product depends on all bits of the key.
  static uint64_t hash(uint64_t key) { return (key * 0x9E3779B97F4A7C15ull) >> 32; }
  void grow() {
    slots_.assign(slots_.size() * 2, -1);
    for (size_t cell = 0; cell < keys_.size(); ++cell) {
      uint64_t slot = hash(keys_[cell]);
      while (slots_[slot & mask()] >= 0) ++slot;
      slots_[slot & mask()] = static_cast<int32_t>(cell);
    }
  }

  std::vector<int32_t> slots_;
  std::vector<uint64_t> keys_;
};

double squared_distance(const float* a, const float* b) {
  const double x = static_cast<double>(a[0]) - b[0];
  const double y = static_cast<double>(a[1]) - b[1];
  const double z = static_cast<double>(a[2]) - b[2];
  return x * x + y * y + z * z;
}

struct Box {
  std::array<float, 3> low{INFINITY, INFINITY, INFINITY};
  std::array<float, 3> high{-INFINITY, -INFINITY, -INFINITY};

  void add(const float* p) {
    for (int k = 0; k < 3; ++k) {
      low[k] = std::min(low[k], p[k]);
      high[k] = std::max(high[k], p[k]);
    }
  }
  double squared_distance_to(const float* p) const {
    double sum = 0;
    for (int k = 0; k < 3; ++k) {
      const double below = static_cast<double>(low[k]) - p[k];
      const double above = static_cast<double>(p[k]) - high[k];
      const double gap = std::max(0.0, std::max(below, above));
      sum += gap * gap;
    }
    return sum;
  }
  // Not above (below, for the largest) that of any pair of points as squared_distance computes it:
  // rounding is monotonic.
  double squared_distance_to(const Box& other) const {
    double sum = 0;
    for (int k = 0; k < 3; ++k) {
      const double below = static_cast<double>(low[k]) - other.high[k];
      const double above = static_cast<double>(other.low[k]) - high[k];
      const double gap = std::max(0.0, std::max(below, above));
      sum += gap * gap;
    }
    return sum;
  }
  double largest_squared_distance_to(const Box& other) const {
    double sum = 0;
    for (int k = 0; k < 3; ++k) {
      const double reach = std::max(static_cast<double>(high[k]) - other.low[k],
                                    static_cast<double>(other.high[k]) - low[k]);
      sum += reach * reach;
    }
    return sum;
  }
  double largest_squared_distance_to(const float* p) const {
    Box point;
    point.add(p);
    return largest_squared_distance_to(point);
  }
  int widest_axis() const {
    int widest = 0;
    for (int k = 1; k < 3; ++k)
      if (high[k] - low[k] > high[widest] - low[widest]) widest = k;
    return widest;
  }
  float width() const { return high[widest_axis()] - low[widest_axis()]; }
};

struct Vector {
  double x, y, z;
  double dot(const Vector& v) const { return x * v.x + y * v.y + z * v.z; }
};

// The points of a cell, halved along the widest axis again and again; coincident ones are one.
class PointTree {
 public:
  struct Node {
    Box box;
    int32_t begin, end;
    int64_t count;        // of points, coincident ones too
    int32_t halves = -1;  // of which this is the first, the second follows; -1: a leaf
    int64_t size() const { return end - begin; }
  };

  explicit PointTree(std::vector<std::array<float, 3>>&& points) : points_(std::move(points)) {
    add_node(0, static_cast<int32_t>(points_.size()));
    for (size_t i = 0; i < nodes_.size(); ++i) divide(i);
  }

  const Node& root() const { return nodes_[0]; }
  const Node& half(const Node& node, int which) const { return nodes_[node.halves + which]; }
  const float* point(int64_t place) const { return points_[place].data(); }

  // The place of the point of a node that lies furthest in a direction, seen from `origin`.
  int32_t furthest(const Node& node, const float* origin, const Vector& direction) const {
    int32_t best = node.begin;
    double best_position = -INFINITY;
    for (int32_t i = node.begin; i < node.end; ++i) {
      const double position = difference(points_[i].data(), origin).dot(direction);
      if (position > best_position) best_position = position, best = i;
    }
    return best;
  }

  static Vector difference(const float* a, const float* b) {
    return {static_cast<double>(a[0]) - b[0], static_cast<double>(a[1]) - b[1],
            static_cast<double>(a[2]) - b[2]};
  }

  bool has_within(double squared_radius, const float* from, const Node& node) const {
    if (node.box.squared_distance_to(from) > squared_radius) return false;
    if (node.halves >= 0)
      return has_within(squared_radius, from, half(node, 0)) ||
             has_within(squared_radius, from, half(node, 1));
    for (int32_t i = node.begin; i < node.end; ++i)
      if (squared_distance(from, point(i)) <= squared_radius) return true;
    return false;
  }

  // How many points are within the radius; it may stop at `enough`.
  int64_t count_within(double squared_radius, const float* from, const Node& node,
                       int64_t enough) const {
    if (node.box.squared_distance_to(from) > squared_radius) return 0;
    if (node.box.largest_squared_distance_to(from) <= squared_radius) return node.count;
    int64_t found = 0;
    if (node.halves >= 0) {
      found = count_within(squared_radius, from, half(node, 0), enough);
      if (found >= enough) return found;
      return found + count_within(squared_radius, from, half(node, 1), enough - found);
    }
    for (int32_t i = node.begin; i < node.end; ++i)
      found += squared_distance(from, point(i)) <= squared_radius;
    return found;
  }

 private:
  void add_node(int32_t begin, int32_t end) {
    Node node{{}, begin, end, end - begin};
    for (int32_t i = begin; i < end; ++i) node.box.add(points_[i].data());
    nodes_.push_back(node);
  }

  void divide(size_t number) {
    Node node = nodes_[number];
    const int axis = node.box.widest_axis();
    if (node.box.low[axis] == node.box.high[axis]) {
      nodes_[number].end = node.begin + 1;
      return;
    }
    if (node.end - node.begin <= kLeafPoints) return;
    const int32_t middle = node.begin + (node.end - node.begin) / 2;
    std::nth_element(points_.begin() + node.begin, points_.begin() + middle,
                     points_.begin() + node.end,
                     [axis](const auto& a, const auto& b) { return a[axis] < b[axis]; });
    nodes_[number].halves = static_cast<int32_t>(nodes_.size());
    add_node(node.begin, middle);
    add_node(middle, node.end);
  }

  std::vector<std::array<float, 3>> points_;
  std::vector<Node> nodes_;
};

// Whether two sets of points have a pair within a radius.
class TouchSearch {
 public:
  TouchSearch(const PointTree& a, const PointTree& b, double squared_radius)
      : a_(a), b_(b), squared_radius_(squared_radius) {}

  bool touch() const { return touch(a_.root(), b_.root()); }

 private:
  using Node = PointTree::Node;
  enum class Separation { kTouch, kApart, kUnknown };

  bool touch(const Node& a, const Node& b) const {
    if (a.box.squared_distance_to(b.box) > squared_radius_) return false;
    if (a.box.largest_squared_distance_to(b.box) <= squared_radius_) return true;
    if (a.halves < 0) return points_touch(a_, a, b_, b);
    if (b.halves < 0) return points_touch(b_, b, a_, a);
    if (std::max(a.size(), b.size()) <= kComparable * std::min(a.size(), b.size())) {
      const Separation found = separation(a, b);
      if (found != Separation::kUnknown) return found == Separation::kTouch;
    }
    // The wider one: parts of about the same width are best told apart.
    if (a.box.width() >= b.box.width()) return touch(a_.half(a, 0), b) || touch(a_.half(a, 1), b);
    return touch(a, b_.half(b, 0)) || touch(a, b_.half(b, 1));
  }

  bool points_touch(const PointTree& tree, const Node& leaf, const PointTree& other_tree,
                    const Node& other) const {
    for (int32_t i = leaf.begin; i < leaf.end; ++i)
      if (other_tree.has_within(squared_radius_, tree.point(i), other)) return true;
    return false;
  }

  // Some steps of Gilbert's algorithm: `v`, of the convex hull of all differences b - a, comes
  // nearer to 0, and in its direction the nearest of the differences shows how far all of them are.
  Separation separation(const Node& a, const Node& b) const {
    // A difference of two floats is exact to 2^-53; what the products round is far below this.
    constexpr double kSafety = 1 + 1e-9;
    const float* origin = a_.point(a.begin);
    Vector v =
        PointTree::difference(b_.point((b.begin + b.end) / 2), a_.point((a.begin + a.end) / 2));
    for (int step = 0; step < kSeparationSteps; ++step) {
      const double squared_length = v.dot(v);
      if (step > 0 && squared_length <= squared_radius_) return Separation::kUnknown;
      const int32_t i = a_.furthest(a, origin, v);
      const int32_t j = b_.furthest(b, origin, {-v.x, -v.y, -v.z});
      if (squared_distance(a_.point(i), b_.point(j)) <= squared_radius_) return Separation::kTouch;
      const Vector nearest = PointTree::difference(b_.point(j), a_.point(i));
      const double reach = nearest.dot(v);
      if (reach > 0 && reach * reach > kSafety * squared_radius_ * squared_length)
        return Separation::kApart;
      const Vector step_back{nearest.x - v.x, nearest.y - v.y, nearest.z - v.z};
      const double squared_step = step_back.dot(step_back);
      if (squared_step == 0) return Separation::kUnknown;
      const double part = std::clamp(-v.dot(step_back) / squared_step, 0.0, 1.0);
      v = {v.x + part * step_back.x, v.y + part * step_back.y, v.z + part * step_back.z};
    }
    return Separation::kUnknown;
  }

  const PointTree& a_;
  const PointTree& b_;
  double squared_radius_;
};

class Clustering {
 public:
  Clustering(const float* points, int64_t num_points, double radius, int64_t min_points)
      : points_(points),
        num_points_(num_points),
        squared_radius_(radius * radius),
        min_points_(min_points),
        offsets_(neighbor_offsets()) {
    assign_cells(radius);
    sort_by_cell();
  }

  void run(int32_t* labels) {
    find_core_points();
    join_cells();
    label_core_points(labels);
    label_border_points(labels);
  }

 private:
  void assign_cells(double radius) {
    // A hair below radius / sqrt(3): rounding in the division can then not put two points further
    // apart than the radius into one cell.
    const double cells_per_metre = std::sqrt(3.0) / (radius * (1.0 - 1e-6));
    std::vector<uint64_t> keys(num_points_);
    parallel_for(num_points_, kPointGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t index[3];
        for (int k = 0; k < 3; ++k) {
          const double position = points_[3 * i + k] * cells_per_metre + kKeyOffset;
          if (!(position >= 2.0 && position < 2.0 * kKeyOffset - 2.0))
            throw std::invalid_argument("the points extend over more than 2^19 cluster radii");
          index[k] = static_cast<int64_t>(position);
        }
        keys[i] = pack(index[0], index[1], index[2]);
      }
    });
    cell_of_.resize(num_points_);
    uint64_t last_key = std::numeric_limits<uint64_t>::max();
    int32_t last_cell = -1;
    for (int64_t i = 0; i < num_points_; ++i) {
      if (keys[i] != last_key) {  // neighbouring pixels mostly share the cell
        last_key = keys[i];
        last_cell = table_.find_or_add(last_key);
      }
      cell_of_[i] = last_cell;
    }
  }

  void sort_by_cell() {
    starts_.assign(table_.size() + 1, 0);
    for (int64_t i = 0; i < num_points_; ++i) ++starts_[cell_of_[i] + 1];
    for (int64_t c = 0; c < table_.size(); ++c) starts_[c + 1] += starts_[c];
    std::vector<int32_t> next(starts_.begin(), starts_.end() - 1);
    original_.resize(num_points_);
    for (int64_t i = 0; i < num_points_; ++i)
      original_[next[cell_of_[i]]++] = static_cast<int32_t>(i);
  }

  const float* sorted(int64_t place) const { return points_ + 3 * int64_t{original_[place]}; }
  int64_t count(int64_t cell) const { return starts_[cell + 1] - starts_[cell]; }

  int32_t neighbor(int64_t cell, const Offset& o) const {
    return table_.find(table_.key(static_cast<int32_t>(cell)) + pack(o.x, o.y, o.z));
  }

  // The neighbours of a cell that satisfy `wanted`, nearest first.
  template <typename Wanted>
  void collect_neighbors(int64_t cell, const Wanted& wanted, std::vector<int32_t>* found) const {
    found->clear();
    for (const Offset& offset : offsets_) {
      const int32_t other = neighbor(cell, offset);
      if (other >= 0 && wanted(other)) found->push_back(other);
    }
  }

  // Sets is_core_ per sorted place and core_counts_ per cell.
  void find_core_points() {
    is_core_.assign(num_points_, 0);
    core_counts_.assign(table_.size(), 0);
    trees_ = std::vector<CoreTree>(table_.size());
    parallel_for(table_.size(), kCellGrain, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> neighbors;
      for (int64_t cell = begin; cell < end; ++cell) {
        if (count(cell) >= min_points_) {
          std::fill(is_core_.begin() + starts_[cell], is_core_.begin() + starts_[cell + 1], 1);
          core_counts_[cell] = static_cast<int32_t>(count(cell));
          continue;
        }
        collect_neighbors(cell, [](int32_t) { return true; }, &neighbors);
        for (int64_t p = starts_[cell]; p < starts_[cell + 1]; ++p) {
          is_core_[p] = has_enough_neighbors(cell, p, neighbors);
          core_counts_[cell] += is_core_[p];
        }
      }
    });
  }

  bool has_enough_neighbors(int64_t cell, int64_t place,
                            const std::vector<int32_t>& neighbors) const {
    int64_t found = count(cell);
    for (const int32_t other : neighbors) {
      if (is_large(other)) {
        const PointTree& tree = core_tree(other);
        found +=
            tree.count_within(squared_radius_, sorted(place), tree.root(), min_points_ - found);
        if (found >= min_points_) return true;
        continue;
      }
      for (int64_t q = starts_[other]; q < starts_[other + 1]; ++q) {
        if (squared_distance(sorted(place), sorted(q)) > squared_radius_) continue;
        if (++found >= min_points_) return true;
      }
    }
    return found >= min_points_;
  }

  int32_t root(int32_t cell) {
    while (parents_[cell] != cell) cell = parents_[cell] = parents_[parents_[cell]];
    return cell;
  }

  // Nearest offsets first over all cells: most cells are joined by then and need no further look.
  void join_cells() {
    parents_.resize(table_.size());
    for (int64_t c = 0; c < table_.size(); ++c) parents_[c] = static_cast<int32_t>(c);
    for (const Offset& offset : offsets_) {
      if (offset.x < 0 || (offset.x == 0 && (offset.y < 0 || (offset.y == 0 && offset.z < 0))))
        continue;  // the pair is met from its other side
      for (int64_t cell = 0; cell < table_.size(); ++cell) {
        if (core_counts_[cell] == 0) continue;
        const int32_t other = neighbor(cell, offset);
        if (other < 0 || core_counts_[other] == 0) continue;
        const int32_t a = root(static_cast<int32_t>(cell)), b = root(other);
        if (a != b && core_points_touch(cell, other)) parents_[std::max(a, b)] = std::min(a, b);
      }
    }
  }

  bool core_points_touch(int64_t a, int64_t b) {
    // Neighbouring cells of a surface nearly always touch, and a few pairs show it.
    const int64_t end = std::min<int64_t>(starts_[a + 1], starts_[a] + kProbes);
    for (int64_t p = starts_[a]; p < end; ++p)
      if (is_core_[p] && touches_core_point(sorted(p), b, kProbes)) return true;
    if (int64_t{core_counts_[a]} * core_counts_[b] > kPairsWithoutTree)
      return TouchSearch(core_tree(a), core_tree(b), squared_radius_).touch();
    const Box& box = core_box(b);
    for (int64_t p = starts_[a]; p < starts_[a + 1]; ++p) {
      if (!is_core_[p] || box.squared_distance_to(sorted(p)) > squared_radius_) continue;
      if (touches_core_point(sorted(p), b, count(b))) return true;
    }
    return false;
  }

  // The box of a cell's core points, computed when it is first needed.
  const Box& core_box(int64_t cell) {
    if (boxes_.empty()) boxes_.resize(table_.size());
    Box& box = boxes_[cell];
    if (box.low[0] > box.high[0])
      for (int64_t p = starts_[cell]; p < starts_[cell + 1]; ++p)
        if (is_core_[p]) box.add(sorted(p));
    return box;
  }

  // A cell of so many points that single points are better looked up in its tree. All of them are
  // core points.
  bool is_large(int64_t cell) const {
    return count(cell) >= std::max(min_points_, kPointsWithoutTree);
  }

  // The tree of a cell's core points, which must be known, made when it is first needed.
  const PointTree& core_tree(int64_t cell) const {
    CoreTree& made = trees_[cell];
    std::call_once(made.once, [&] {
      std::vector<std::array<float, 3>> points;
      const bool has_all = count(cell) >= min_points_;
      for (int64_t p = starts_[cell]; p < starts_[cell + 1]; ++p)
        if (has_all || is_core_[p]) points.push_back({sorted(p)[0], sorted(p)[1], sorted(p)[2]});
      made.tree = std::make_unique<PointTree>(std::move(points));
    });
    return *made.tree;
  }

  bool touches_cell(const float* point, int64_t cell) const {
    if (!is_large(cell)) return touches_core_point(point, cell, count(cell));
    const PointTree& tree = core_tree(cell);
    return tree.has_within(squared_radius_, point, tree.root());
  }

  // Whether a point is within the radius of a core point among the first `limit` points of a cell.
  bool touches_core_point(const float* point, int64_t cell, int64_t limit) const {
    const int64_t end = std::min<int64_t>(starts_[cell + 1], starts_[cell] + limit);
    for (int64_t q = starts_[cell]; q < end; ++q)
      if (is_core_[q] && squared_distance(point, sorted(q)) <= squared_radius_) return true;
    return false;
  }

  // Clusters are numbered in the order of their lowest core point.
  void label_core_points(int32_t* labels) {
    std::fill_n(labels, num_points_, -1);
    for (int64_t p = 0; p < num_points_; ++p)
      if (is_core_[p]) labels[original_[p]] = 0;
    cell_labels_.assign(table_.size(), -1);
    std::vector<int32_t> root_labels(table_.size(), -1);
    int32_t num_labels = 0;
    for (int64_t i = 0; i < num_points_; ++i) {
      if (labels[i] < 0) continue;
      int32_t& label = cell_labels_[cell_of_[i]];
      if (label < 0) {
        int32_t& root_label = root_labels[root(cell_of_[i])];
        if (root_label < 0) root_label = num_labels++;
        label = root_label;
      }
      labels[i] = label;
    }
  }

  void label_border_points(int32_t* labels) const {
    parallel_for(table_.size(), kCellGrain, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> neighbors;
      for (int64_t cell = begin; cell < end; ++cell) {
        if (core_counts_[cell] == count(cell)) continue;
        collect_neighbors(cell, [&](int32_t other) { return core_counts_[other] > 0; }, &neighbors);
        for (int64_t p = starts_[cell]; p < starts_[cell + 1]; ++p)
          if (!is_core_[p]) labels[original_[p]] = border_label(cell, p, neighbors);
      }
    });
  }

  int32_t border_label(int64_t cell, int64_t place, const std::vector<int32_t>& neighbors) const {
    constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
    int32_t best = core_counts_[cell] > 0 ? cell_labels_[cell] : kNone;
    for (const int32_t other : neighbors)
      if (cell_labels_[other] < best && touches_cell(sorted(place), other))
        best = cell_labels_[other];
    return best == kNone ? -1 : best;
  }

  const float* points_;
  int64_t num_points_;
  double squared_radius_;
  int64_t min_points_;
  std::vector<Offset> offsets_;
  CellTable table_;
  std::vector<int32_t> cell_of_;   // (N,)
  std::vector<int32_t> starts_;    // (cells + 1,) into the sorted points
  std::vector<int32_t> original_;  // (N,) index of a sorted point in the input
  std::vector<uint8_t> is_core_;   // (N,) by sorted place
  std::vector<int32_t> core_counts_;
  std::vector<Box> boxes_;  // of core points; empty until needed
  struct CoreTree {
    std::once_flag once;
    std::unique_ptr<PointTree> tree;
  };
  mutable std::vector<CoreTree> trees_;  // per cell
  std::vector<int32_t> parents_;
  std::vector<int32_t> cell_labels_;
};

}  // namespace

int64_t mark_pixels(const float* xyz, int64_t num_pixels, const double* plane,
                    double removal_distance, uint8_t* states) {
  std::atomic<int64_t> num_foreground{0};
  parallel_for(num_pixels, kPixelGrain, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    for (int64_t i = begin; i < end; ++i) {
      const float x = xyz[3 * i], y = xyz[3 * i + 1], z = xyz[3 * i + 2];
      // `&`, not `&&`: no branches, so the loop has no mispredictions at the object's edges.
      const bool is_measured = (x != 0) & (y != 0) & (z != 0);
      bool is_near = false;
      if (plane != nullptr) {
        const double distance = plane[0] * x + plane[1] * y + plane[2] * z + plane[3];
        is_near = std::fabs(distance) < removal_distance;
      }
      states[i] = is_near ? kPixelRemoved : (is_measured ? kPixelForeground : kPixelMissing);
      found += is_measured & !is_near;
    }
    num_foreground += found;
  });
  return num_foreground;
}

void density_clusters(const float* points, int64_t num_points, double radius, int64_t min_points,
                      int32_t* labels) {
  if (num_points == 0) return;
  Clustering(points, num_points, radius, min_points).run(labels);
}

int64_t keep_largest_cluster(const float* xyz, int64_t num_pixels, double radius,
                             int64_t min_points, uint8_t* states) {
  const int64_t num_points = std::count(states, states + num_pixels, kPixelForeground);
  std::vector<float> points(3 * num_points);
  std::vector<int32_t> pixels(num_points);
  for (int64_t i = 0, k = 0; k < num_points; ++i) {
    if (states[i] != kPixelForeground) continue;
    std::copy_n(xyz + 3 * i, 3, points.begin() + 3 * k);
    pixels[k++] = static_cast<int32_t>(i);
  }
  std::vector<int32_t> labels(num_points);
  density_clusters(points.data(), num_points, radius, min_points, labels.data());
  std::vector<int64_t> sizes;  // sizes[label + 1]
  for (const int32_t label : labels) {
    if (static_cast<size_t>(label) + 1 >= sizes.size()) sizes.resize(label + 2, 0);
    ++sizes[label + 1];
  }
  if (sizes.empty()) return 0;
  const auto largest = std::max_element(sizes.begin(), sizes.end());
  const int32_t kept = static_cast<int32_t>(largest - sizes.begin()) - 1;
  for (int64_t k = 0; k < num_points; ++k)
    if (labels[k] != kept) states[pixels[k]] = kPixelRemoved;
  return *largest;
}

}  // namespace mmad_fast
