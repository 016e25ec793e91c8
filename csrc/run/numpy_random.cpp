#include "run/numpy_random.h"

#include <array>

namespace mmad_fast {
namespace {

constexpr int kPoolWords = 4;
using Pool = std::array<uint32_t, kPoolWords>;

// SeedSequence: a hash of the seed's 32-bit words, whose constants change with every use.
class SeedHash {
 public:
  SeedHash(uint32_t initial, uint32_t multiplier) : constant_(initial), multiplier_(multiplier) {}
  uint32_t operator()(uint32_t value) {
    value ^= constant_;
    constant_ *= multiplier_;
    value *= constant_;
    return value ^ value >> 16;
  }

 private:
  uint32_t constant_, multiplier_;
};

Pool seed_pool(uint64_t seed) {
  SeedHash hash(0x43b0d7e5u, 0x931e8875u);
  const Pool words = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), 0, 0};
  Pool pool;
  for (int i = 0; i < kPoolWords; ++i) pool[i] = hash(words[i]);
  for (int source = 0; source < kPoolWords; ++source) {
    for (int target = 0; target < kPoolWords; ++target) {
      if (source == target) continue;
      const uint32_t mixed = 0xca01f9ddu * pool[target] - 0x4973f715u * hash(pool[source]);
      pool[target] = mixed ^ mixed >> 16;
    }
  }
  return pool;
}

std::array<uint64_t, 4> seed_state(uint64_t seed) {
  const Pool pool = seed_pool(seed);
  SeedHash hash(0x8b51f9ddu, 0x58f38dedu);
  std::array<uint64_t, 4> state;
  for (int i = 0; i < 4; ++i) {
    const uint64_t lower = hash(pool[2 * i % kPoolWords]);
    state[i] = lower | static_cast<uint64_t>(hash(pool[(2 * i + 1) % kPoolWords])) << 32;
  }
  return state;
}

}  // namespace

NumpyRandom::NumpyRandom(uint64_t seed) {
  const auto words = seed_state(seed);
  const auto join = [](uint64_t high, uint64_t low) { return Uint128{high} << 64 | low; };
  increment_ = join(words[2], words[3]) << 1 | 1;
  step();
  state_ += join(words[0], words[1]);
  step();
}

std::vector<int64_t> NumpyRandom::integers(int64_t high, int64_t count) {
  std::vector<int64_t> result(count, 0);
  if (high == 1) return result;  // nothing is drawn
  const auto range = static_cast<uint32_t>(high);
  const uint32_t threshold = (0u - range) % range;
  for (int64_t& value : result) {
    uint64_t product = uint64_t{next_uint32()} * range;
    while (static_cast<uint32_t>(product) < threshold) product = uint64_t{next_uint32()} * range;
    value = static_cast<int64_t>(product >> 32);
  }
  return result;
}

void NumpyRandom::step() {
  constexpr Uint128 kMultiplier = Uint128{0x2360ed051fc65da4u} << 64 | 0x4385df649fccf645u;
  state_ = state_ * kMultiplier + increment_;
}

uint64_t NumpyRandom::next_uint64() {
  step();
  const auto folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
  const auto turn = static_cast<unsigned>(state_ >> 122);
  return folded >> turn | folded << (-turn & 63);
}

uint32_t NumpyRandom::next_uint32() {
  if (has_upper_half_) {
    has_upper_half_ = false;
    return upper_half_;
  }
  const uint64_t both = next_uint64();
  has_upper_half_ = true;
  upper_half_ = static_cast<uint32_t>(both >> 32);
  return static_cast<uint32_t>(both);
}

}  // namespace mmad_fast
