// Single-precision C = A * B^T for matrices that are multiplied many times.
//
// B (n x k), typically the weight of a Linear layer, is packed once into column panels. A (m x k)
// is taken in strips of rows, packed by the thread that multiplies them. Accumulation is float32,
// in blocks of kDepthBlock terms whose sums are added in order; the order depends neither on the
// number of threads nor on how the rows are divided. Instruction sets differ in rounding: the
// baseline of x86-64 has no fused multiply-add.
//
// Zeros that lead all columns of a panel are neither stored nor multiplied: an upper triangular B
// costs half of a full one.
#pragma once

#include <cstdint>
#include <vector>

#include "common/aligned_buffer.h"

namespace mmad_fast {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

bool has_instruction_set(InstructionSet instruction_set);
InstructionSet best_instruction_set();

// Terms of a dot product that are summed before C is touched; also the row stride of a packed
// strip. A multiple of every panel width. That many rows of a panel (36 KB) stay in the first level
// cache while a strip passes.
constexpr int64_t kDepthBlock = 192;

// Rows that a thread packs and multiplies at a time: a multiple of every micro-kernel's height.
constexpr int64_t kStripRows = 112;

// B (n x k): panels of `panel_width` columns of B^T, one after the other, each depth-major from its
// first depth that is not all zero, and filled up with columns of zeros.
struct PackedMatrix {
  int64_t n = 0;
  int64_t k = 0;
  int64_t panel_width = 1;
  InstructionSet instruction_set = InstructionSet::kBaseline;
  AlignedFloats panels;
  std::vector<int64_t> first_depths;   // per panel, k if all is zero
  std::vector<int64_t> panel_offsets;  // per panel, into `panels`

  int64_t num_panels() const { return (n + panel_width - 1) / panel_width; }
  int64_t padded_n() const { return num_panels() * panel_width; }
};

// Packs rows 0 .. n - 1 of b; row i starts at b + i * stride.
PackedMatrix pack_matrix(const float* b, int64_t n, int64_t k, int64_t stride,
                         InstructionSet instruction_set = best_instruction_set());

// Up to kStripRows rows of A: for each depth block kStripRows rows of kDepthBlock floats.
class Strip {
 public:
  explicit Strip(int64_t k);
  // The kDepthBlock floats of one row in one depth block; the last block may be filled partly.
  float* block(int64_t depth_block, int64_t row) {
    return floats_.data() + (depth_block * kStripRows + row) * kDepthBlock;
  }
  const float* block(int64_t depth_block, int64_t row) const {
    return floats_.data() + (depth_block * kStripRows + row) * kDepthBlock;
  }
  // Copies `rows` rows of A, row i starting at a + i * stride.
  void fill(const float* a, int64_t rows, int64_t stride);
  // Copies one row of A.
  void fill_row(const float* a, int64_t row);

 private:
  int64_t k_;
  AlignedFloats floats_;
};

// c[i * stride + j] for i < rows and the columns j < n of panels panel_begin .. panel_end - 1, on
// the calling thread. Columns are counted from the first of panel_begin.
void multiply_strip(const Strip& a, int64_t rows, const PackedMatrix& b, int64_t panel_begin,
                    int64_t panel_end, float* c, int64_t stride);

// C (m x n, row stride c_stride) = A (m x k, row stride a_stride) * B^T on all threads.
void gemm(const float* a, int64_t m, int64_t a_stride, const PackedMatrix& b, float* c,
          int64_t c_stride);

// The same for the rows of A that are listed: row i of C belongs to row rows[i] of A.
void gemm_of_rows(const float* a, const std::vector<int64_t>& rows, int64_t a_stride,
                  const PackedMatrix& b, float* c, int64_t c_stride);

}  // namespace mmad_fast
