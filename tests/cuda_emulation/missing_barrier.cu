// The block's sum with the barrier between its steps forgotten.
#define BARRIER_BETWEEN_STEPS()
#include "block_sum.h"
#include "doubles.h"

float block_sum_without_barrier(const float* values) { return sum_of(values); }
