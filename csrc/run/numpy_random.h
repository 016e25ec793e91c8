// The random numbers of numpy.random.default_rng: PCG64 (O'Neill, 2014), seeded by SeedSequence.
#pragma once

#include <cstdint>
#include <vector>

namespace mmad_fast {

class NumpyRandom {
 public:
  // As numpy.random.default_rng(seed).
  explicit NumpyRandom(uint64_t seed);

  // As Generator.integers(0, high, count), 1 <= high <= 2^31: Lemire's bounded numbers.
  std::vector<int64_t> integers(int64_t high, int64_t count);

 private:
  using Uint128 = unsigned __int128;
  uint64_t next_uint64();
  uint32_t next_uint32();  // the lower half of a 64-bit number, then its upper half
  void step();

  Uint128 state_ = 0;
  Uint128 increment_ = 0;
  bool has_upper_half_ = false;
  uint32_t upper_half_ = 0;
};

}  // namespace mmad_fast
