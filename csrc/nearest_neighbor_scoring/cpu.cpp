// Algorithm: |q - m|^2 = |q|^2 + |m|^2 - 2 q.m. Queries are packed once per block; threads take
// strips of kStripRows bank rows, multiply them with a tile of queries, and reduce the tile at once
// to a minimum per query. The formula cancels, so it only rules rows out: every row whose value is
// within the bound on the rounding error of the smallest one is a candidate, and candidates are
// compared by direct differences in float64. That is one or two rows per query on feature banks;
// with many near-ties (duplicates, or a common offset much larger than the distances) it is more,
// and slower, never wrong. The result therefore depends neither on the number of threads nor on the
// instruction set. Memory: per thread a strip of the bank and a tile of kStripRows x kTilePanels
// panels, never Q x M.
#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <limits>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "common/sum_squares.h"
#include "nearest_neighbor_scoring/op.h"

namespace mmad_fast {
namespace nearest_neighbor_kernels {

MMAD_FAST_MULTIVERSION double squared_distance(const float* a, const float* b, int64_t count) {
  double lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int64_t lane = 0; lane < kSumLanes; ++lane) {
      const double difference = static_cast<double>(a[i + lane]) - b[i + lane];
      lanes[lane] += difference * difference;
    }
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) {
    const double difference = static_cast<double>(a[i]) - b[i];
    lanes[lane] += difference * difference;
  }
  return add_lanes(lanes);
}

// products[i] becomes norm - 2 * products[i]; smallest[i] its minimum over the rows so far.
MMAD_FAST_MULTIVERSION void reduce_row(float* __restrict__ products, float norm, int64_t count,
                                       float* __restrict__ smallest) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = norm - 2.0f * products[i];
    products[i] = value;
    smallest[i] = value < smallest[i] ? value : smallest[i];
  }
}

}  // namespace nearest_neighbor_kernels

namespace {

using namespace nearest_neighbor_kernels;

constexpr int64_t kQueryBlock = 1024;  // queries packed at a time
constexpr int64_t kTilePanels = 10;    // panels of queries per tile
constexpr std::size_t kMaxPending = 32;
constexpr double kRounding = FLT_EPSILON / 2;
constexpr double kOverflow = 1e37;  // squared lengths from here on may overflow in float32

// Bound on |(|m|^2 - 2 q.m) - its float32 value| for rows not longer than `norm`. A dot product
// adds kDepthBlock terms one after the other, then the blocks.
double error_bound(int64_t width, double query_norm, double norm) {
  if (std::max(norm * norm, query_norm * norm) > kOverflow) {
    return std::numeric_limits<double>::infinity();
  }
  const double terms = static_cast<double>(std::min(width, kDepthBlock) + width / kDepthBlock + 3);
  return kRounding * (2.1 * norm * norm + 2.1 * (terms + 1.0) * query_norm * norm) + FLT_MIN;
}

struct Nearest {
  double squared_distance = std::numeric_limits<double>::infinity();
  int64_t index = std::numeric_limits<int64_t>::max();

  void offer(double other_squared_distance, int64_t other_index) {
    if (other_squared_distance < squared_distance ||
        (other_squared_distance == squared_distance && other_index < index)) {
      squared_distance = other_squared_distance;
      index = other_index;
    }
  }
};

struct Candidate {
  int64_t index;
  double lower;  // the row's |m|^2 - 2 q.m is not below this
};

// One thread's search for the nearest rows of a block of queries.
class Search {
 public:
  Search(const float* queries, const PackedMatrix& packed, const std::vector<double>& norms,
         const Bank& bank)
      : nearest(packed.n),
        queries_(queries),
        packed_(packed),
        norms_(norms),
        bank_(bank),
        strip_(bank.width),
        tile_(kStripRows * kTilePanels * packed.panel_width),
        smallest_(kTilePanels * packed.panel_width),
        upper_(packed.n, std::numeric_limits<double>::infinity()),
        pending_(packed.n) {}

  void take_strip(int64_t first_row, int64_t rows) {
    strip_.fill(bank_.rows + first_row * bank_.width, rows, bank_.width);
    double longest = 0.0;
    for (int64_t row = 0; row < rows; ++row) {
      longest = std::max(longest, bank_.squared_norms[first_row + row]);
    }
    longest = std::sqrt(longest);
    for (int64_t panel = 0; panel < packed_.num_panels(); panel += kTilePanels) {
      const int64_t end = std::min(panel + kTilePanels, packed_.num_panels());
      const int64_t first_query = panel * packed_.panel_width;
      const int64_t count = std::min(end * packed_.panel_width, packed_.n) - first_query;
      multiply_strip(strip_, rows, packed_, panel, end, tile_.data(), count);
      reduce_tile(first_row, rows, first_query, count, longest);
    }
  }

  void finish() {
    for (int64_t query = 0; query < packed_.n; ++query) settle(query);
  }

  std::vector<Nearest> nearest;

 private:
  void reduce_tile(int64_t first_row, int64_t rows, int64_t first_query, int64_t count,
                   double longest) {
    std::fill_n(smallest_.begin(), count, std::numeric_limits<float>::infinity());
    for (int64_t row = 0; row < rows; ++row) {
      reduce_row(tile_.data() + row * count,
                 static_cast<float>(bank_.squared_norms[first_row + row]), count, smallest_.data());
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t query = first_query + i;
      const double error = error_bound(bank_.width, norms_[query], longest);
      // Negated comparisons: where float32 overflowed, values are NaN and the error is infinite.
      if (smallest_[i] - error > upper_[query]) continue;
      if (smallest_[i] + error < upper_[query]) upper_[query] = smallest_[i] + error;
      for (int64_t row = 0; row < rows; ++row) {
        const double lower = tile_[row * count + i] - error;
        if (lower > upper_[query]) continue;
        pending_[query].push_back({first_row + row, lower});
        if (pending_[query].size() >= kMaxPending) settle(query);
      }
    }
  }

  // Measures a query's candidates exactly.
  void settle(int64_t query) {
    for (const Candidate& candidate : pending_[query]) {
      if (candidate.lower > upper_[query]) continue;
      nearest[query].offer(
          squared_distance(queries_ + query * bank_.width,
                           bank_.rows + candidate.index * bank_.width, bank_.width),
          candidate.index);
    }
    pending_[query].clear();
  }

  const float* queries_;
  const PackedMatrix& packed_;
  const std::vector<double>& norms_;
  const Bank& bank_;
  Strip strip_;
  AlignedFloats tile_;         // bank rows x queries
  AlignedFloats smallest_;     // per query of the tile
  std::vector<double> upper_;  // the nearest row's |m|^2 - 2 q.m is not above this
  std::vector<std::vector<Candidate>> pending_;
};

void score_block(const float* queries, int64_t num_queries, const Bank& bank, float* distances,
                 int64_t* indices) {
  const PackedMatrix packed = pack_matrix(queries, num_queries, bank.width, bank.width);
  std::vector<double> norms(num_queries);
  for (int64_t query = 0; query < num_queries; ++query) {
    norms[query] = std::sqrt(sum_squares(queries + query * bank.width, bank.width));
  }
  const int64_t strips = (bank.num_rows + kStripRows - 1) / kStripRows;
  const int64_t workers = std::min<int64_t>(num_threads(), strips);
  std::vector<std::vector<Nearest>> found(workers);
  std::atomic<int64_t> next{0};
  parallel_for(workers, 1, [&](int64_t worker, int64_t) {
    Search search(queries, packed, norms, bank);
    for (int64_t strip = next++; strip < strips; strip = next++) {
      const int64_t first_row = strip * kStripRows;
      search.take_strip(first_row, std::min(kStripRows, bank.num_rows - first_row));
    }
    search.finish();
    found[worker] = std::move(search.nearest);
  });
  for (int64_t query = 0; query < num_queries; ++query) {
    Nearest nearest;
    for (const auto& part : found) {
      nearest.offer(part[query].squared_distance, part[query].index);
    }
    distances[query] = static_cast<float>(std::sqrt(nearest.squared_distance));
    indices[query] = nearest.index;
  }
}

}  // namespace

Bank prepare_bank(const float* rows, int64_t num_rows, int64_t width) {
  Bank bank{rows, num_rows, width, std::vector<double>(num_rows)};
  parallel_for(num_rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      bank.squared_norms[row] = sum_squares(rows + row * width, width);
    }
  });
  return bank;
}

void nearest_neighbor_scoring(const float* queries, int64_t num_queries, const Bank& bank,
                              float* distances, int64_t* indices) {
  for (int64_t first = 0; first < num_queries; first += kQueryBlock) {
    score_block(queries + first * bank.width, std::min(kQueryBlock, num_queries - first), bank,
                distances + first, indices + first);
  }
}

}  // namespace mmad_fast
