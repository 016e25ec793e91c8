// Build: nodes are split along the axis in which a sample of their points is widest, at the
// sample's mean, or at the median where that would leave one side nearly empty, until a leaf holds
// the points. The upper levels go level by level, a thread per node, then each thread takes whole
// subtrees. The tree itself is not kept. Results of searches do not depend on which points a leaf
// holds.
#include "common/point_index.h"

#include <algorithm>
#include <limits>

#include "common/parallel.h"

namespace mmad_fast {
namespace {

// x, y, z and the index as bits, moved as one.
using PointRecord = float __attribute__((vector_size(16)));

constexpr int64_t kMaxBlockPoints = 12 * kLeafSize;  // rarely more than 16 leaves after the splits
constexpr int64_t kSubtreePoints = 16384;
constexpr int64_t kSampleSize = 32;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Range {
  PointRecord *begin, *end;
  int64_t size() const { return end - begin; }
};

struct Bounds {
  PointRecord low{kInfinity, kInfinity, kInfinity, kInfinity};
  PointRecord high{-kInfinity, -kInfinity, -kInfinity, -kInfinity};
  PointRecord sum{};

  void add(PointRecord record) {
    low = record < low ? record : low;
    high = record > high ? record : high;
    sum += record;
  }
  void join(const Bounds& other) {
    low = other.low < low ? other.low : low;
    high = other.high > high ? other.high : high;
  }
};

// Moves the records below the pivot to the front, without a branch; returns where the others begin.
PointRecord* partition(Range range, int axis, float pivot) {
  PointRecord* boundary = range.begin;
  for (PointRecord* i = range.begin; i != range.end; ++i) {
    const PointRecord record = *i;
    *i = *boundary;
    *boundary = record;
    boundary += record[axis] < pivot;
  }
  return boundary;
}

// Where the second half of a range of at least two points begins; both halves hold a point.
PointRecord* split(Range range) {
  Bounds sample;
  const int64_t stride = std::max<int64_t>(1, range.size() / kSampleSize);
  const int64_t sample_size = (range.size() + stride - 1) / stride;
  for (int64_t i = 0; i < sample_size; ++i) sample.add(range.begin[i * stride]);
  const PointRecord sides = sample.high - sample.low;
  int axis = 0;
  for (int other = 1; other < 3; ++other) {
    if (sides[other] > sides[axis]) axis = other;
  }
  PointRecord* boundary =
      partition(range, axis, sample.sum[axis] / static_cast<float>(sample_size));
  const int64_t least = range.size() / 8 + 1;
  if (boundary - range.begin < least || range.end - boundary < least) {
    boundary = range.begin + range.size() / 2;
    std::nth_element(
        range.begin, boundary, range.end,
        [axis](const PointRecord& a, const PointRecord& b) { return a[axis] < b[axis]; });
  }
  return boundary;
}

// The leaves of a block; those of a subtree, block by block.
using Leaves = std::vector<Range>;

void collect_leaves(Range range, Leaves& leaves) {
  if (range.size() <= kLeafSize) {
    leaves.push_back(range);
    return;
  }
  PointRecord* boundary = split(range);
  collect_leaves({range.begin, boundary}, leaves);
  collect_leaves({boundary, range.end}, leaves);
}

void collect_blocks(Range range, std::vector<Leaves>& blocks) {
  if (range.size() > kMaxBlockPoints) {
    PointRecord* boundary = split(range);
    collect_blocks({range.begin, boundary}, blocks);
    collect_blocks({boundary, range.end}, blocks);
    return;
  }
  Leaves leaves;
  collect_leaves(range, leaves);
  for (size_t i = 0; i < leaves.size(); i += kBoxesPerGroup) {
    const size_t end = std::min<size_t>(leaves.size(), i + kBoxesPerGroup);
    blocks.emplace_back(leaves.begin() + i, leaves.begin() + end);
  }
}

// A power of two of subtrees, some for each thread, or the whole where it is small.
std::vector<Range> split_into_subtrees(Range all) {
  std::vector<Range> nodes{all};
  while (static_cast<int64_t>(nodes.size()) < 4 * num_threads() &&
         all.size() > kSubtreePoints * static_cast<int64_t>(nodes.size())) {
    std::vector<Range> halves(2 * nodes.size());
    parallel_for(nodes.size(), 1, [&](int64_t i, int64_t) {
      PointRecord* boundary = nodes[i].size() < 2 ? nodes[i].end : split(nodes[i]);
      halves[2 * i] = {nodes[i].begin, boundary};
      halves[2 * i + 1] = {boundary, nodes[i].end};
    });
    nodes = std::move(halves);
  }
  return nodes;
}

void set_box(BoxGroup& group, int64_t at, const Bounds& bounds) {
  for (int axis = 0; axis < 3; ++axis) {
    group.low[axis][at] = bounds.low[axis];
    group.high[axis][at] = bounds.high[axis];
  }
}

Bounds fill_leaf(Range range, float* coordinates, uint32_t* indices) {
  Bounds bounds;
  const int64_t count = range.size();
  for (int64_t i = 0; i < count; ++i) {
    const PointRecord record = range.begin[i];
    bounds.add(record);
    for (int axis = 0; axis < 3; ++axis) coordinates[axis * kLeafSize + i] = record[axis];
    indices[i] = __builtin_bit_cast(uint32_t, record[3]);
  }
  for (int axis = 0; axis < 3; ++axis) {
    std::fill(coordinates + axis * kLeafSize + count, coordinates + (axis + 1) * kLeafSize,
              kInfinity);
  }
  std::fill(indices + count, indices + kLeafSize, kNoPoint);
  return bounds;
}

void fill_block(const Leaves& leaves, int64_t block, PointIndex& index) {
  Bounds block_bounds;
  BoxGroup& boxes = index.leaf_boxes[block];
  for (int64_t i = 0; i < kBoxesPerGroup; ++i) set_box(boxes, i, Bounds());
  for (size_t i = 0; i < leaves.size(); ++i) {
    const int64_t leaf = block * kBoxesPerGroup + static_cast<int64_t>(i);
    const Bounds bounds = fill_leaf(leaves[i], &index.coordinates[3 * kLeafSize * leaf],
                                    &index.indices[kLeafSize * leaf]);
    set_box(boxes, i, bounds);
    block_bounds.join(bounds);
  }
  index.leaf_counts[block] = static_cast<int32_t>(leaves.size());
  set_box(index.block_boxes[block / kBoxesPerGroup], block % kBoxesPerGroup, block_bounds);
}

}  // namespace

PointIndex build_point_index(const float* points, int64_t num_points) {
  UninitializedVector<PointRecord> records(num_points);
  parallel_for(num_points, 2 * kSubtreePoints, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      records[n] = PointRecord{points[3 * n], points[3 * n + 1], points[3 * n + 2],
                               __builtin_bit_cast(float, static_cast<uint32_t>(n))};
    }
  });
  const std::vector<Range> subtrees =
      split_into_subtrees({records.data(), records.data() + num_points});
  std::vector<std::vector<Leaves>> blocks(subtrees.size());
  parallel_for(subtrees.size(), 1, [&](int64_t i, int64_t) {
    if (subtrees[i].size() > 0) collect_blocks(subtrees[i], blocks[i]);
  });
  std::vector<int64_t> first_block{0};
  for (const auto& of_subtree : blocks) {
    first_block.push_back(first_block.back() + static_cast<int64_t>(of_subtree.size()));
  }
  PointIndex index;
  index.points = points;
  index.num_points = num_points;
  index.num_blocks = first_block.back();
  index.leaf_counts.resize(index.num_blocks);
  index.leaf_boxes.resize(index.num_blocks);
  index.block_boxes.resize((index.num_blocks + kBoxesPerGroup - 1) / kBoxesPerGroup);
  index.coordinates.resize(3 * kLeafSize * kBoxesPerGroup * index.num_blocks);
  index.indices.resize(kLeafSize * kBoxesPerGroup * index.num_blocks);
  for (BoxGroup& group : index.block_boxes) {
    for (int64_t i = 0; i < kBoxesPerGroup; ++i) set_box(group, i, Bounds());
  }
  parallel_for(subtrees.size(), 1, [&](int64_t i, int64_t) {
    for (size_t b = 0; b < blocks[i].size(); ++b) {
      fill_block(blocks[i][b], first_block[i] + static_cast<int64_t>(b), index);
    }
  });
  return index;
}

}  // namespace mmad_fast
