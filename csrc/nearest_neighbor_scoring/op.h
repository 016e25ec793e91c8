// The nearest row of a memory bank for every query.
#pragma once

#include <cstdint>
#include <vector>

#include "common/aligned_buffer.h"

namespace mmad_fast {

// Rows (num_rows x width, row-major, the caller's memory): either floats or IEEE half precision.
struct BankRows {
  const float* floats = nullptr;
  const uint16_t* halves = nullptr;
  int64_t num_rows = 0;
  int64_t width = 0;
  std::vector<float> half_norms;  // |row|^2 / 2
};

// Coordinates of a row relative to `mean` along `rank` orthonormal directions, and the norm of the
// remainder. The directions are scaled by kBasisScale (cpu.cpp), so that two projected rows are
// never further apart than the rows.
struct Projection {
  int64_t rank = 0;  // 0: none
  std::vector<double> mean;
  std::vector<double> basis;  // width x padded_rank, zeros behind the rank
  int64_t padded_rank() const;
};

// rank > 0; mean (width,) and basis (width x rank, row-major, orthonormal columns).
Projection make_projection(const double* mean, const double* basis, int64_t width, int64_t rank);

// Writes the projected rows (num_rows x (rank + 1)), and the lengths (num_rows,) of the rows
// relative to the mean where `lengths` is given.
void project_all(const Projection& projection, const BankRows& rows, float* target,
                 double* lengths);

// Bound on the rounding error of a projected row, relative to its length.
double coordinate_error(int64_t rank, int64_t width);

struct Bank {
  Bank() = default;
  Bank(Bank&&) = default;  // no copies: projected points into projected_floats
  BankRows rows;
  Projection projection;
  AlignedFloats projected_floats;  // what projected.floats points to
  BankRows projected;              // num_rows x (rank + 1); empty without a projection
};

// Projected where `rank` > 0, with mean and basis as in make_projection. Not copied: the rows.
Bank prepare_bank(BankRows rows, const double* mean, const double* basis, int64_t rank);

// How the queries of a call were answered.
struct ScoringStatistics {
  int64_t measured_rows = 0;  // exact distances
  int64_t opened_groups = 0;  // groups of bank rows that the bound of the group did not exclude
  int64_t plain_queries = 0;  // queries that the projection could not help
};

// distances[q] = min over m of |queries[q] - bank[m]|, indices[q] = the lowest m that reaches it.
// Both are what float64 arithmetic on the float32 queries and the bank's rows gives; see cpu.cpp.
// rows.num_rows >= 1.
ScoringStatistics nearest_neighbor_scoring(const float* queries, int64_t num_queries,
                                           const Bank& bank, float* distances, int64_t* indices);

// The `count` rows of the bank that are nearest to query (width,), without row `exclude` (-1: none
// is left out): distances and indices (count,), ascending by distance, of equals the lowest index
// first. Exact as above. Returns how many there are, which is fewer in a small bank.
int64_t nearest_rows(const float* query, const Bank& bank, int64_t count, int64_t exclude,
                     float* distances, int64_t* indices);

}  // namespace mmad_fast
