#include "common/gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace mmad_fast {
namespace {

constexpr int kMaxTile = 8 * 48;  // floats of the largest tile below

using Kernel = void (*)(const float* a, const float* b, int64_t depth, float* c, int64_t stride,
                        bool accumulate);

#if defined(__x86_64__)

#define MMAD_KERNEL kernel_avx512
#define MMAD_TARGET __attribute__((target("avx512f")))
#define MMAD_VECTOR __m512
#define MMAD_ROWS 8
#define MMAD_VECTORS 3
#define MMAD_LOAD(p) _mm512_loadu_ps(p)
#define MMAD_STORE(p, v) _mm512_storeu_ps(p, v)
#define MMAD_SPREAD(x) _mm512_set1_ps(x)
#define MMAD_ADD(a, b) _mm512_add_ps(a, b)
#define MMAD_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#include "common/gemm_kernel.inc"

#define MMAD_KERNEL kernel_avx2
#define MMAD_TARGET __attribute__((target("avx2,fma")))
#define MMAD_VECTOR __m256
#define MMAD_ROWS 4
#define MMAD_VECTORS 3
#define MMAD_LOAD(p) _mm256_loadu_ps(p)
#define MMAD_STORE(p, v) _mm256_storeu_ps(p, v)
#define MMAD_SPREAD(x) _mm256_set1_ps(x)
#define MMAD_ADD(a, b) _mm256_add_ps(a, b)
#define MMAD_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#include "common/gemm_kernel.inc"

#define MMAD_KERNEL kernel_baseline
#define MMAD_TARGET
#define MMAD_VECTOR __m128
#define MMAD_ROWS 4
#define MMAD_VECTORS 2
#define MMAD_LOAD(p) _mm_loadu_ps(p)
#define MMAD_STORE(p, v) _mm_storeu_ps(p, v)
#define MMAD_SPREAD(x) _mm_set1_ps(x)
#define MMAD_ADD(a, b) _mm_add_ps(a, b)
#define MMAD_FMA(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)
#include "common/gemm_kernel.inc"
constexpr int kBaselineRows = 4, kBaselineColumns = 8;

#elif defined(__aarch64__)

#define MMAD_KERNEL kernel_baseline
#define MMAD_TARGET
#define MMAD_VECTOR float32x4_t
#define MMAD_ROWS 8
#define MMAD_VECTORS 2
#define MMAD_LOAD(p) vld1q_f32(p)
#define MMAD_STORE(p, v) vst1q_f32(p, v)
#define MMAD_SPREAD(x) vdupq_n_f32(x)
#define MMAD_ADD(a, b) vaddq_f32(a, b)
#define MMAD_FMA(a, b, c) vfmaq_f32(c, a, b)
#include "common/gemm_kernel.inc"
constexpr int kBaselineRows = 8, kBaselineColumns = 8;

#else

#define MMAD_KERNEL kernel_baseline
#define MMAD_TARGET
#define MMAD_VECTOR float
#define MMAD_ROWS 4
#define MMAD_VECTORS 4
#define MMAD_LOAD(p) (*(p))
#define MMAD_STORE(p, v) (*(p) = (v))
#define MMAD_SPREAD(x) (x)
#define MMAD_ADD(a, b) ((a) + (b))
#define MMAD_FMA(a, b, c) ((a) * (b) + (c))
#include "common/gemm_kernel.inc"
constexpr int kBaselineRows = 4, kBaselineColumns = 4;

#endif

struct Tile {
  Kernel kernel;
  int rows;
  int columns;
};

Tile tile_of(InstructionSet instruction_set) {
#if defined(__x86_64__)
  if (instruction_set == InstructionSet::kAvx512) return {kernel_avx512, 8, 48};
  if (instruction_set == InstructionSet::kAvx2) return {kernel_avx2, 4, 24};
#endif
  (void)instruction_set;
  return {kernel_baseline, kBaselineRows, kBaselineColumns};
}

// A tile that overhangs the strip's rows or the matrix's columns is computed aside.
void multiply_overhanging(const Tile& tile, const float* a, const float* b, int64_t depth, float* c,
                          int64_t stride, int64_t rows, int64_t columns, bool accumulate) {
  alignas(64) float whole[kMaxTile];
  tile.kernel(a, b, depth, whole, tile.columns, false);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      float& target = c[row * stride + column];
      const float value = whole[row * tile.columns + column];
      target = accumulate ? target + value : value;
    }
  }
}

int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// How many leading entries are zero in all rows.
int64_t num_leading_zeros(const float* rows, int64_t num_rows, int64_t k, int64_t stride) {
  int64_t count = k;
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* values = rows + row * stride;
    count = std::find_if(values, values + count, [](float x) { return x != 0.0f; }) - values;
  }
  return count;
}

int64_t num_depth_blocks(int64_t k) { return (k + kDepthBlock - 1) / kDepthBlock; }

}  // namespace

bool has_instruction_set(InstructionSet instruction_set) {
#if defined(__x86_64__)
  if (instruction_set == InstructionSet::kAvx512) return __builtin_cpu_supports("avx512f");
  if (instruction_set == InstructionSet::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return instruction_set == InstructionSet::kBaseline;
}

InstructionSet best_instruction_set() {
  static const InstructionSet best =
      has_instruction_set(InstructionSet::kAvx512) ? InstructionSet::kAvx512
      : has_instruction_set(InstructionSet::kAvx2) ? InstructionSet::kAvx2
                                                   : InstructionSet::kBaseline;
  return best;
}

PackedMatrix pack_matrix(const float* b, int64_t n, int64_t k, int64_t stride,
                         InstructionSet instruction_set) {
  PackedMatrix packed;
  packed.n = n;
  packed.k = k;
  packed.instruction_set = instruction_set;
  const int64_t width = packed.panel_width = tile_of(instruction_set).columns;
  packed.first_depths.resize(packed.num_panels());
  packed.panel_offsets.resize(packed.num_panels());
  int64_t size = 0;
  for (int64_t panel = 0; panel < packed.num_panels(); ++panel) {
    const int64_t columns = std::min(width, n - panel * width);
    packed.first_depths[panel] = num_leading_zeros(b + panel * width * stride, columns, k, stride);
    packed.panel_offsets[panel] = size;
    size += width * (k - packed.first_depths[panel]);
  }
  packed.panels.resize(size);
  parallel_for(packed.num_panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t columns = std::min(width, n - panel * width);
      const int64_t first = packed.first_depths[panel];
      float* target = packed.panels.data() + packed.panel_offsets[panel];
      for (int64_t column = 0; column < columns; ++column) {
        const float* source = b + (panel * width + column) * stride;
        for (int64_t d = first; d < k; ++d) target[(d - first) * width + column] = source[d];
      }
    }
  });
  return packed;
}

Strip::Strip(int64_t k) : k_(k), floats_(num_depth_blocks(k) * kStripRows * kDepthBlock) {}

void Strip::fill_row(const float* a, int64_t row) {
  for (int64_t first = 0; first < k_; first += kDepthBlock) {
    const int64_t depth = std::min(kDepthBlock, k_ - first);
    std::memcpy(block(first / kDepthBlock, row), a + first, depth * sizeof(float));
  }
}

void Strip::fill(const float* a, int64_t rows, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row) fill_row(a + row * stride, row);
}

void multiply_strip(const Strip& a, int64_t rows, const PackedMatrix& b, int64_t panel_begin,
                    int64_t panel_end, float* c, int64_t stride) {
  const Tile tile = tile_of(b.instruction_set);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t columns = std::min<int64_t>(tile.columns, b.n - panel * tile.columns);
    const float* panel_b = b.panels.data() + b.panel_offsets[panel];
    float* panel_c = c + (panel - panel_begin) * tile.columns;
    int64_t first = b.first_depths[panel];
    if (first == b.k) {
      for (int64_t row = 0; row < rows; ++row) std::fill_n(panel_c + row * stride, columns, 0.0f);
    }
    for (bool accumulate = false; first < b.k; accumulate = true) {
      const int64_t depth = std::min(kDepthBlock - first % kDepthBlock, b.k - first);
      for (int64_t row = 0; row < rows; row += tile.rows) {
        const float* block = a.block(first / kDepthBlock, row) + first % kDepthBlock;
        float* target = panel_c + row * stride;
        if (columns == tile.columns && row + tile.rows <= rows) {
          tile.kernel(block, panel_b, depth, target, stride, accumulate);
        } else {
          multiply_overhanging(tile, block, panel_b, depth, target, stride,
                               std::min<int64_t>(tile.rows, rows - row), columns, accumulate);
        }
      }
      panel_b += depth * tile.columns;
      first += depth;
    }
  }
}

namespace {

// C = A * B^T on all threads, row i of A starting at row_of(i).
template <typename RowOf>
void multiply_rows(const RowOf& row_of, int64_t m, const PackedMatrix& b, float* c,
                   int64_t c_stride) {
  if (m == 0 || b.n == 0) return;
  // Strips of equal height, equally many for each thread. Few rows: divide the columns too.
  const int64_t threads = num_threads(), tile_rows = tile_of(b.instruction_set).rows;
  const int64_t whole = (m + kStripRows - 1) / kStripRows;
  const int64_t height = round_up((m - 1) / round_up(whole, threads) + 1, tile_rows);
  const int64_t strips = (m + height - 1) / height;
  const int64_t wanted = (4 * threads + strips - 1) / strips;
  const int64_t group = std::max<int64_t>(1, b.num_panels() / wanted);
  const int64_t groups = (b.num_panels() + group - 1) / group;
  const int64_t tasks = strips * groups;
  std::atomic<int64_t> next{0};
  parallel_for(std::min(threads, tasks), 1, [&](int64_t, int64_t) {
    Strip strip(b.k);
    int64_t filled = -1;
    for (int64_t task = next++; task < tasks; task = next++) {
      const int64_t first_row = task / groups * height;
      const int64_t rows = std::min(height, m - first_row);
      if (filled != first_row) {
        for (int64_t row = 0; row < rows; ++row) strip.fill_row(row_of(first_row + row), row);
        filled = first_row;
      }
      const int64_t panel = task % groups * group;
      multiply_strip(strip, rows, b, panel, std::min(panel + group, b.num_panels()),
                     c + first_row * c_stride + panel * b.panel_width, c_stride);
    }
  });
}

}  // namespace

void gemm(const float* a, int64_t m, int64_t a_stride, const PackedMatrix& b, float* c,
          int64_t c_stride) {
  multiply_rows([=](int64_t row) { return a + row * a_stride; }, m, b, c, c_stride);
}

void gemm_of_rows(const float* a, const std::vector<int64_t>& rows, int64_t a_stride,
                  const PackedMatrix& b, float* c, int64_t c_stride) {
  multiply_rows([&](int64_t row) { return a + rows[row] * a_stride; },
                static_cast<int64_t>(rows.size()), b, c, c_stride);
}

}  // namespace mmad_fast
