// Algorithm: README.md of the op. Two passes over the groups. The first finds what a group and the
// batch statistics need: the maximum of 256 channels, and mean and scatter of the 128 hidden ones.
// The second puts all points through the wide layers and keeps nothing but the maximum.
//
// Within a group the points are ordered so that kTileRows neighbours in memory are neighbours in
// space. A channel behind a ReLU is then often zero for all of them, and the tile's products leave
// it out: about 0.62 of the terms remain, with the same sum.
//
// Memory: a thread has one strip of kStripTiles tiles in its second level cache; of all points only
// the ordered coordinates are kept. Accumulation: float32 in the products (k terms one after the
// other, k <= 512), float64 in all statistics beyond one group. Statistics are summed over
// kNumChunks chunks of groups, in order: nothing depends on the number of threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/parallel.h"
#include "common/simd.h"
#include "point_embedding/op.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace mmad_fast {
namespace {

constexpr int64_t kTileRows = 8;     // points whose zero channels are left out together
constexpr int64_t kStripTiles = 16;  // tiles that go through the wide layers together
constexpr int64_t kNumChunks = 32;   // of groups, for the statistics
constexpr double kNormEpsilon = 1e-5;
constexpr double kOverflow = 1e37;

// Row strides of activations: no power of two, so that the rows of a tile use different cache sets.
constexpr int64_t kHiddenStride = kHiddenChannels + 16;
constexpr int64_t kWideStride = kWideChannels + 16;

// Tiles of rows, and for each tile the channels in which not all its rows are zero.
struct Tiles {
  const float* rows;
  const int32_t* channels;
  const int32_t* num_channels;
  int64_t width;  // entries of `channels` per tile
  int64_t count;

  const int32_t* channels_of(int64_t tile) const { return channels + tile * width; }
};

struct Kernels {
  int64_t panel_width;
  void (*hidden_maxima)(const Tiles& tiles, const ChannelPanels& weight, float* const* maxima);
  void (*wide_maxima)(const Tiles& tiles, const ChannelPanels& weight, float* const* maxima);
  void (*wide_activations)(const Tiles& tiles, const ChannelPanels& weight, const float* scale,
                           const float* const* shifts, float* result);
  void (*hidden_scatter)(const float* x, int64_t num_points, float* scatter);
};

#if defined(__x86_64__)

namespace avx512 {
#define MMAD_TARGET __attribute__((target("avx512f")))
#define MMAD_VECTOR __m512
#define MMAD_ROWS 8
#define MMAD_VECTORS 3
#define MMAD_LOAD(p) _mm512_loadu_ps(p)
#define MMAD_STORE(p, v) _mm512_storeu_ps(p, v)
#define MMAD_SPREAD(x) _mm512_set1_ps(x)
#define MMAD_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MMAD_MAX(a, b) _mm512_max_ps(a, b)
#include "point_embedding/tile_kernel.inc"
}  // namespace avx512

namespace avx2 {
#define MMAD_TARGET __attribute__((target("avx2,fma")))
#define MMAD_VECTOR __m256
#define MMAD_ROWS 4
#define MMAD_VECTORS 3
#define MMAD_LOAD(p) _mm256_loadu_ps(p)
#define MMAD_STORE(p, v) _mm256_storeu_ps(p, v)
#define MMAD_SPREAD(x) _mm256_set1_ps(x)
#define MMAD_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define MMAD_MAX(a, b) _mm256_max_ps(a, b)
#include "point_embedding/tile_kernel.inc"
}  // namespace avx2

namespace baseline {
#define MMAD_TARGET
#define MMAD_VECTOR __m128
#define MMAD_ROWS 4
#define MMAD_VECTORS 2
#define MMAD_LOAD(p) _mm_loadu_ps(p)
#define MMAD_STORE(p, v) _mm_storeu_ps(p, v)
#define MMAD_SPREAD(x) _mm_set1_ps(x)
#define MMAD_FMA(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)
#define MMAD_MAX(a, b) _mm_max_ps(a, b)
#include "point_embedding/tile_kernel.inc"
}  // namespace baseline

#elif defined(__aarch64__)

namespace baseline {
#define MMAD_TARGET
#define MMAD_VECTOR float32x4_t
#define MMAD_ROWS 8
#define MMAD_VECTORS 2
#define MMAD_LOAD(p) vld1q_f32(p)
#define MMAD_STORE(p, v) vst1q_f32(p, v)
#define MMAD_SPREAD(x) vdupq_n_f32(x)
#define MMAD_FMA(a, b, c) vfmaq_f32(c, a, b)
#define MMAD_MAX(a, b) vmaxq_f32(a, b)
#include "point_embedding/tile_kernel.inc"
}  // namespace baseline

#else

namespace baseline {
#define MMAD_TARGET
#define MMAD_VECTOR float
#define MMAD_ROWS 4
#define MMAD_VECTORS 2
#define MMAD_LOAD(p) (*(p))
#define MMAD_STORE(p, v) (*(p) = (v))
#define MMAD_SPREAD(x) (x)
#define MMAD_FMA(a, b, c) ((a) * (b) + (c))
#define MMAD_MAX(a, b) std::max(a, b)
#include "point_embedding/tile_kernel.inc"
}  // namespace baseline

#endif

const Kernels& kernels_of(InstructionSet instruction_set) {
#if defined(__x86_64__)
  if (instruction_set == InstructionSet::kAvx512) return avx512::kKernels;
  if (instruction_set == InstructionSet::kAvx2) return avx2::kKernels;
#endif
  (void)instruction_set;
  return baseline::kKernels;
}

}  // namespace

namespace point_embedding_kernels {

// rows[i] = max(0, weight * points[i] + bias); weight (4 x 128): x, y, z, bias.
MMAD_FAST_MULTIVERSION void hidden_rows(const float* points, int64_t count,
                                        const float* __restrict__ weight,
                                        float* __restrict__ rows) {
  const float *wx = weight, *wy = wx + kHiddenChannels, *wz = wy + kHiddenChannels,
              *bias = wz + kHiddenChannels;
  for (int64_t i = 0; i < count; ++i) {
    const float x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2];
    for (int64_t c = 0; c < kHiddenChannels; ++c) {
      const float value = ((x * wx[c] + y * wy[c]) + z * wz[c]) + bias[c];
      rows[c] = value > 0.0f ? value : 0.0f;
    }
    rows += kHiddenStride;
  }
}

// Lists the channels in which one of a tile's rows (non-negative) is not zero; their number.
MMAD_FAST_MULTIVERSION int32_t list_channels(const float* rows, int64_t stride, int64_t width,
                                             int32_t* __restrict__ channels) {
  float largest[kWideChannels];
  for (int64_t c = 0; c < width; ++c) largest[c] = rows[c];
  for (int64_t row = 1; row < kTileRows; ++row) {
    const float* values = rows + row * stride;
    for (int64_t c = 0; c < width; ++c) {
      largest[c] = values[c] > largest[c] ? values[c] : largest[c];
    }
  }
  int32_t count = 0;
  for (int64_t c = 0; c < width; ++c) {
    channels[count] = static_cast<int32_t>(c);
    count += largest[c] > 0.0f;
  }
  return count;
}

// mean (128) of rows that are kHiddenStride apart.
MMAD_FAST_MULTIVERSION void mean_row(const float* rows, int64_t count, float* __restrict__ mean) {
  double sums[kHiddenChannels] = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < kHiddenChannels; ++c) sums[c] += rows[i * kHiddenStride + c];
  }
  for (int64_t c = 0; c < kHiddenChannels; ++c) {
    mean[c] = static_cast<float>(sums[c] / static_cast<double>(count));
  }
}

MMAD_FAST_MULTIVERSION void subtract_row(float* __restrict__ rows, int64_t count,
                                         const float* __restrict__ mean) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < kHiddenChannels; ++c) rows[i * kHiddenStride + c] -= mean[c];
  }
}

MMAD_FAST_MULTIVERSION void add_to_doubles(const float* __restrict__ values, int64_t count,
                                           double* __restrict__ sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += values[i];
}

// sums += values + offsets, squares += the square of that.
MMAD_FAST_MULTIVERSION void add_moments(const float* __restrict__ values,
                                        const float* __restrict__ offsets, int64_t count,
                                        double* __restrict__ sums, double* __restrict__ squares) {
  for (int64_t i = 0; i < count; ++i) {
    const double value = static_cast<double>(values[i]) + offsets[i];
    sums[i] += value;
    squares[i] += value * value;
  }
}

// weight^T * scatter * weight with a symmetric scatter (128 x 128).
MMAD_FAST_MULTIVERSION double projected_variance(const float* weight, const double* scatter) {
  double projected[kHiddenChannels] = {};
  for (int64_t i = 0; i < kHiddenChannels; ++i) {
    const double factor = weight[i];
    const double* row = scatter + i * kHiddenChannels;
    for (int64_t j = 0; j < kHiddenChannels; ++j) projected[j] += factor * row[j];
  }
  double sum = 0.0;
  for (int64_t i = 0; i < kHiddenChannels; ++i) sum += weight[i] * projected[i];
  return sum;
}

MMAD_FAST_MULTIVERSION void normalize_row(float* __restrict__ values,
                                          const float* __restrict__ mean,
                                          const float* __restrict__ scale,
                                          const float* __restrict__ shift, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = (values[i] - mean[i]) * scale[i] + shift[i];
}

}  // namespace point_embedding_kernels

namespace {

using namespace point_embedding_kernels;

struct Point {
  float axes[3];
};
static_assert(sizeof(Point) == 3 * sizeof(float), "points lie in memory as in the array");

// Orders points so that each run of kTileRows is compact: median cuts across the widest axis.
void make_tiles_compact(Point* points, int64_t count) {
  while (count > kTileRows) {
    int widest = 0;
    float widest_extent = -1.0f;
    for (int axis = 0; axis < 3; ++axis) {
      float low = points[0].axes[axis], high = low;
      for (int64_t i = 1; i < count; ++i) {
        low = std::min(low, points[i].axes[axis]);
        high = std::max(high, points[i].axes[axis]);
      }
      if (high - low > widest_extent) {
        widest_extent = high - low;
        widest = axis;
      }
    }
    const int64_t tiles = (count + kTileRows - 1) / kTileRows;
    const int64_t half = (tiles + 1) / 2 * kTileRows;
    std::nth_element(
        points, points + half, points + count,
        [widest](const Point& a, const Point& b) { return a.axes[widest] < b.axes[widest]; });
    make_tiles_compact(points + half, count - half);
    count = half;
  }
}

// Sums over points: of the coordinates, and of their products xx, xy, xz, yy, yz, zz.
struct PointSums {
  double sums[3] = {};
  double products[6] = {};
  double largest = 0.0;

  void add(const Point& point) {
    int pair = 0;
    for (int i = 0; i < 3; ++i) {
      const double value = point.axes[i];
      sums[i] += value;
      largest = std::max(largest, std::fabs(value));
      for (int j = i; j < 3; ++j) products[pair++] += value * point.axes[j];
    }
  }
  void add(const PointSums& other) {
    for (int i = 0; i < 3; ++i) sums[i] += other.sums[i];
    for (int i = 0; i < 6; ++i) products[i] += other.products[i];
    largest = std::max(largest, other.largest);
  }
};

// The groups' points, ordered, each group filled up to whole tiles with copies of its last point:
// copies change no maximum.
struct TiledGroups {
  int64_t num_groups;
  int64_t group_size;
  int64_t tiles_per_group;
  int64_t groups_per_chunk;
  int64_t num_chunks;
  std::vector<Point> points;

  TiledGroups(int64_t num_groups_, int64_t group_size_)
      : num_groups(num_groups_),
        group_size(group_size_),
        tiles_per_group((group_size_ + kTileRows - 1) / kTileRows),
        groups_per_chunk((num_groups_ + kNumChunks - 1) / kNumChunks),
        num_chunks((num_groups_ + groups_per_chunk - 1) / groups_per_chunk),
        points(num_groups_ * tiles_per_group * kTileRows) {}

  Point* group(int64_t index) { return points.data() + index * tiles_per_group * kTileRows; }
  const float* tile(int64_t index) const { return points[index * kTileRows].axes; }

  // Calls body(chunk, first group, end) for all chunks, on all threads.
  template <typename Body>
  void for_each_chunk(const Body& body) const {
    parallel_for(num_chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * groups_per_chunk;
        body(chunk, first, std::min(first + groups_per_chunk, num_groups));
      }
    });
  }

  PointSums fill(const float* source) {
    std::vector<PointSums> by_chunk(num_chunks);
    for_each_chunk([&](int64_t chunk, int64_t first, int64_t end) {
      for (int64_t index = first; index < end; ++index) {
        Point* target = group(index);
        std::memcpy(target, source + index * group_size * 3, group_size * sizeof(Point));
        for (int64_t i = 0; i < group_size; ++i) by_chunk[chunk].add(target[i]);
        make_tiles_compact(target, group_size);
        std::fill(target + group_size, target + tiles_per_group * kTileRows,
                  target[group_size - 1]);
      }
    });
    PointSums all;
    for (const PointSums& sums : by_chunk) all.add(sums);
    return all;
  }
};

// The first layer with its norm folded in: (4 x 128) x, y, z, bias.
struct FirstLayer {
  AlignedFloats weight;
  double largest = 0.0;  // bound on the hidden values

  FirstLayer(const PackedEmbedder& embedder, const PointSums& points, int64_t num_points)
      : weight(4 * kHiddenChannels) {
    double mean[3], covariance[3][3];
    int pair = 0;
    for (int i = 0; i < 3; ++i) mean[i] = points.sums[i] / static_cast<double>(num_points);
    for (int i = 0; i < 3; ++i) {
      for (int j = i; j < 3; ++j) {
        const double product = points.products[pair++] / static_cast<double>(num_points);
        covariance[i][j] = covariance[j][i] = product - mean[i] * mean[j];
      }
    }
    for (int64_t c = 0; c < kHiddenChannels; ++c) {
      const float* w = embedder.first_weight.data() + 3 * c;
      double scale = 1.0, bias = embedder.first_bias[c], magnitude = 0.0;
      if (embedder.uses_cloud_statistics) {
        double variance = 0.0, offset = 0.0;
        for (int i = 0; i < 3; ++i) {
          offset += w[i] * mean[i];
          for (int j = 0; j < 3; ++j) variance += w[i] * covariance[i][j] * w[j];
        }
        scale = embedder.first_norm_weight[c] / std::sqrt(std::max(variance, 0.0) + kNormEpsilon);
        bias = embedder.first_norm_bias[c] - offset * scale;
      }
      for (int i = 0; i < 3; ++i) {
        weight[i * kHiddenChannels + c] = static_cast<float>(w[i] * scale);
        magnitude += std::fabs(w[i] * scale) * points.largest;
      }
      weight[3 * kHiddenChannels + c] = static_cast<float>(bias);
      largest = std::max(largest, magnitude + std::fabs(bias));
    }
  }
};

// Per group, over its points: maxima (G x 256) and hidden means (G x 128); and the hidden scatter
// within the groups, (128 x 128), of all groups together.
struct GroupSummary {
  AlignedFloats maxima;
  AlignedFloats means;
  std::vector<double> scatter;
};

GroupSummary summarise(TiledGroups& groups, const FirstLayer& first,
                       const PackedEmbedder& embedder) {
  const Kernels& kernels = kernels_of(embedder.instruction_set);
  const bool needs_moments = embedder.uses_cloud_statistics;
  const int64_t tiles = groups.tiles_per_group, rows = tiles * kTileRows;
  constexpr int64_t kScatterSize = kHiddenChannels * kHiddenChannels;
  GroupSummary summary;
  summary.maxima.assign(groups.num_groups * kLocalChannels,
                        -std::numeric_limits<float>::infinity());
  if (needs_moments) {
    summary.means.resize(groups.num_groups * kHiddenChannels);
    summary.scatter.resize(groups.num_chunks * kScatterSize);
  }
  groups.for_each_chunk([&](int64_t chunk, int64_t first_group, int64_t end) {
    AlignedFloats hidden(rows * kHiddenStride), scatter(needs_moments ? kScatterSize : 0);
    std::vector<int32_t> channels(tiles * kHiddenChannels), num_channels(tiles);
    std::vector<float*> maxima(tiles);
    for (int64_t group = first_group; group < end; ++group) {
      hidden_rows(groups.group(group)->axes, rows, first.weight.data(), hidden.data());
      for (int64_t tile = 0; tile < tiles; ++tile) {
        num_channels[tile] =
            list_channels(hidden.data() + tile * kTileRows * kHiddenStride, kHiddenStride,
                          kHiddenChannels, channels.data() + tile * kHiddenChannels);
        maxima[tile] = summary.maxima.data() + group * kLocalChannels;
      }
      kernels.hidden_maxima(
          {hidden.data(), channels.data(), num_channels.data(), kHiddenChannels, tiles},
          embedder.wide, maxima.data());
      if (!needs_moments) continue;
      float* mean = summary.means.data() + group * kHiddenChannels;
      mean_row(hidden.data(), groups.group_size, mean);
      subtract_row(hidden.data(), groups.group_size, mean);
      kernels.hidden_scatter(hidden.data(), groups.group_size, scatter.data());
      add_to_doubles(scatter.data(), kScatterSize, summary.scatter.data() + chunk * kScatterSize);
    }
  });
  if (needs_moments) {
    double* scatter = summary.scatter.data();
    for (int64_t chunk = 1; chunk < groups.num_chunks; ++chunk) {
      for (int64_t i = 0; i < kScatterSize; ++i) scatter[i] += scatter[chunk * kScatterSize + i];
    }
    for (int64_t i = 0; i < kHiddenChannels; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        scatter[i * kHiddenChannels + j] = scatter[j * kHiddenChannels + i];
      }
    }
  }
  return summary;
}

// The second norm, of half + local_weight * hidden: (x - mean) * scale + shift, each (512).
struct SecondNorm {
  AlignedFloats mean, scale, shift;

  // Frozen statistics: they are in the weights, and only the bias is left to be added.
  explicit SecondNorm(const std::vector<float>& bias)
      : mean(kWideChannels, 0.0f), scale(kWideChannels, 1.0f), shift(bias.begin(), bias.end()) {}
};

// The second norm with the cloud's statistics. Law of total variance: that of the groups' means,
// and that within the groups. The layer's bias cancels.
SecondNorm second_norm_of_cloud(const TiledGroups& groups, const GroupSummary& summary,
                                const AlignedFloats& half, const PackedEmbedder& embedder) {
  const int64_t num_groups = groups.num_groups;
  const int64_t num_strips = (num_groups + kStripRows - 1) / kStripRows;
  std::vector<double> sums(num_strips * 2 * kWideChannels);
  parallel_for(num_strips, 1, [&](int64_t begin, int64_t end) {
    Strip strip(kHiddenChannels);
    AlignedFloats means(kStripRows * kWideChannels);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index * kStripRows, rows = std::min(kStripRows, num_groups - first);
      strip.fill(summary.means.data() + first * kHiddenChannels, rows, kHiddenChannels);
      multiply_strip(strip, rows, embedder.local_of_means, 0, embedder.local_of_means.num_panels(),
                     means.data(), kWideChannels);
      double* target = sums.data() + index * 2 * kWideChannels;
      for (int64_t row = 0; row < rows; ++row) {
        add_moments(means.data() + row * kWideChannels, half.data() + (first + row) * kWideChannels,
                    kWideChannels, target, target + kWideChannels);
      }
    }
  });
  const double num_points = static_cast<double>(num_groups) * groups.group_size;
  SecondNorm norm(embedder.second_norm_bias);
  parallel_for(kWideChannels, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sum = 0.0, squares = 0.0;
      for (int64_t strip = 0; strip < num_strips; ++strip) {
        sum += sums[strip * 2 * kWideChannels + c];
        squares += sums[(strip * 2 + 1) * kWideChannels + c];
      }
      const double mean = sum / num_groups, between = squares / num_groups - mean * mean;
      const double within = projected_variance(embedder.local_weight.data() + c * kHiddenChannels,
                                               summary.scatter.data()) /
                            num_points;
      const double variance = std::max(between, 0.0) + std::max(within, 0.0);
      norm.mean[c] = static_cast<float>(mean);
      norm.scale[c] =
          static_cast<float>(embedder.second_norm_weight[c] / std::sqrt(variance + kNormEpsilon));
    }
  });
  return norm;
}

// half (G x 512): what a group adds to each of its points behind the second norm. Returns the norm.
SecondNorm set_group_half(TiledGroups& groups, const FirstLayer& first,
                          const PackedEmbedder& embedder, AlignedFloats& half) {
  const GroupSummary summary = summarise(groups, first, embedder);
  gemm(summary.maxima.data(), groups.num_groups, kLocalChannels, embedder.group, half.data(),
       kWideChannels);
  const SecondNorm norm = embedder.uses_cloud_statistics
                              ? second_norm_of_cloud(groups, summary, half, embedder)
                              : SecondNorm(embedder.group_bias);
  for (int64_t group = 0; group < groups.num_groups; ++group) {
    normalize_row(half.data() + group * kWideChannels, norm.mean.data(), norm.scale.data(),
                  norm.shift.data(), kWideChannels);
  }
  return norm;
}

// One thread's buffers for a strip of tiles.
struct StripBuffers {
  AlignedFloats hidden = AlignedFloats(kStripTiles * kTileRows * kHiddenStride);
  AlignedFloats wide = AlignedFloats(kStripTiles * kTileRows * kWideStride);
  std::vector<int32_t> hidden_channels = std::vector<int32_t>(kStripTiles * kHiddenChannels);
  std::vector<int32_t> wide_channels = std::vector<int32_t>(kStripTiles * kWideChannels);
  int32_t num_hidden_channels[kStripTiles];
  int32_t num_wide_channels[kStripTiles];
};

// The maxima of the last layer, without its bias, over the tiles of some groups.
void finish_tiles(const TiledGroups& groups, int64_t first_tile, int64_t end_tile,
                  const FirstLayer& first, const AlignedFloats& scale, const AlignedFloats& half,
                  const PackedEmbedder& embedder, StripBuffers& buffers, float* tokens) {
  const Kernels& kernels = kernels_of(embedder.instruction_set);
  const float* shifts[kStripTiles];
  float* maxima[kStripTiles];
  for (int64_t strip = first_tile; strip < end_tile; strip += kStripTiles) {
    const int64_t count = std::min(kStripTiles, end_tile - strip);
    hidden_rows(groups.tile(strip), count * kTileRows, first.weight.data(), buffers.hidden.data());
    for (int64_t tile = 0; tile < count; ++tile) {
      const int64_t group = (strip + tile) / groups.tiles_per_group;
      shifts[tile] = half.data() + group * kWideChannels;
      maxima[tile] = tokens + group * kTokenChannels;
      buffers.num_hidden_channels[tile] =
          list_channels(buffers.hidden.data() + tile * kTileRows * kHiddenStride, kHiddenStride,
                        kHiddenChannels, buffers.hidden_channels.data() + tile * kHiddenChannels);
    }
    kernels.wide_activations({buffers.hidden.data(), buffers.hidden_channels.data(),
                              buffers.num_hidden_channels, kHiddenChannels, count},
                             embedder.local, scale.data(), shifts, buffers.wide.data());
    for (int64_t tile = 0; tile < count; ++tile) {
      buffers.num_wide_channels[tile] =
          list_channels(buffers.wide.data() + tile * kTileRows * kWideStride, kWideStride,
                        kWideChannels, buffers.wide_channels.data() + tile * kWideChannels);
    }
    kernels.wide_maxima({buffers.wide.data(), buffers.wide_channels.data(),
                         buffers.num_wide_channels, kWideChannels, count},
                        embedder.final, maxima);
  }
}

ChannelPanels pack_panels(const float* b, int64_t n, int64_t k, int64_t panel_width) {
  ChannelPanels packed{n, k, AlignedFloats(n * k)};
  for (int64_t first = 0; first < n; first += panel_width) {
    const int64_t width = std::min(panel_width, n - first);
    float* panel = packed.panels.data() + first * k;
    for (int64_t column = 0; column < width; ++column) {
      for (int64_t d = 0; d < k; ++d) panel[d * width + column] = b[(first + column) * k + d];
    }
  }
  return packed;
}

double largest_row_sum(const float* weight, int64_t rows, int64_t columns) {
  double largest = 0.0;
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0.0;
    for (int64_t i = 0; i < columns; ++i) sum += std::fabs(weight[row * columns + i]);
    largest = std::max(largest, sum);
  }
  return largest;
}

template <typename Floats>
double largest_magnitude(const Floats& values) {
  double largest = 0.0;
  for (const float value : values) largest = std::max(largest, std::fabs(double{value}));
  return largest;
}

}  // namespace

PackedEmbedder pack_embedder(const EmbedderView& weights, InstructionSet instruction_set) {
  const auto copy = [](const float* values, int64_t count) {
    return values ? std::vector<float>(values, values + count) : std::vector<float>();
  };
  const int64_t width = kernels_of(instruction_set).panel_width;
  PackedEmbedder packed;
  packed.instruction_set = instruction_set;
  packed.uses_cloud_statistics = weights.first_norm_weight != nullptr;
  packed.first_weight = copy(weights.first_weight, 3 * kHiddenChannels);
  packed.first_bias = copy(weights.first_bias, kHiddenChannels);
  packed.local_weight = copy(weights.local_weight, kWideChannels * kHiddenChannels);
  packed.group_bias = copy(weights.group_bias, kWideChannels);
  packed.final_bias = copy(weights.final_bias, kTokenChannels);
  packed.first_norm_weight = copy(weights.first_norm_weight, kHiddenChannels);
  packed.first_norm_bias = copy(weights.first_norm_bias, kHiddenChannels);
  packed.second_norm_weight = copy(weights.second_norm_weight, kWideChannels);
  packed.second_norm_bias = copy(weights.second_norm_bias, kWideChannels);
  packed.wide = pack_panels(weights.wide_weight, kLocalChannels, kHiddenChannels, width);
  packed.local = pack_panels(weights.local_weight, kWideChannels, kHiddenChannels, width);
  packed.final = pack_panels(weights.final_weight, kTokenChannels, kWideChannels, width);
  packed.group = pack_matrix(weights.group_weight, kWideChannels, kLocalChannels, kLocalChannels,
                             instruction_set);
  if (packed.uses_cloud_statistics) {
    packed.local_of_means = pack_matrix(weights.local_weight, kWideChannels, kHiddenChannels,
                                        kHiddenChannels, instruction_set);
  }
  packed.wide_growth = largest_row_sum(weights.wide_weight, kLocalChannels, kHiddenChannels);
  packed.local_growth = largest_row_sum(weights.local_weight, kWideChannels, kHiddenChannels);
  packed.group_growth = largest_row_sum(weights.group_weight, kWideChannels, kLocalChannels);
  packed.final_growth = largest_row_sum(weights.final_weight, kTokenChannels, kWideChannels);
  return packed;
}

bool point_embedding(const float* groups, int64_t num_groups, int64_t group_size,
                     const PackedEmbedder& embedder, float* tokens) {
  if (num_groups == 0) return true;
  TiledGroups tiled(num_groups, group_size);
  const PointSums points = tiled.fill(groups);
  const FirstLayer first(embedder, points, num_groups * group_size);
  const double local_bound = embedder.wide_growth * first.largest;
  const double wide_bound = embedder.local_growth * first.largest +
                            embedder.group_growth * local_bound +
                            largest_magnitude(embedder.group_bias);
  const double scatter_bound =
      embedder.uses_cloud_statistics ? 4.0 * first.largest * first.largest * group_size : 0.0;
  if (!(std::max({local_bound, wide_bound, scatter_bound}) < kOverflow)) return false;

  AlignedFloats half(num_groups * kWideChannels);
  const SecondNorm norm = set_group_half(tiled, first, embedder, half);
  const double activation_bound =
      2.0 * wide_bound * largest_magnitude(norm.scale) + largest_magnitude(norm.shift);
  const double token_bound =
      embedder.final_growth * activation_bound + largest_magnitude(embedder.final_bias);
  if (!(std::max(activation_bound, token_bound) < kOverflow)) return false;

  std::fill_n(tokens, num_groups * kTokenChannels, -std::numeric_limits<float>::infinity());
  const int64_t groups_per_task = std::max<int64_t>(1, kStripTiles / tiled.tiles_per_group);
  const int64_t num_tasks = (num_groups + groups_per_task - 1) / groups_per_task;
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(num_threads(), num_tasks), 1, [&](int64_t, int64_t) {
    StripBuffers buffers;
    for (int64_t task = next++; task < num_tasks; task = next++) {
      const int64_t begin = task * groups_per_task;
      const int64_t end = std::min(begin + groups_per_task, num_groups);
      finish_tiles(tiled, begin * tiled.tiles_per_group, end * tiled.tiles_per_group, first,
                   norm.scale, half, embedder, buffers, tokens);
      for (int64_t group = begin; group < end; ++group) {
        for (int64_t c = 0; c < kTokenChannels; ++c) {
          tokens[group * kTokenChannels + c] += embedder.final_bias[c];
        }
      }
    }
  });
  return true;
}

}  // namespace mmad_fast
