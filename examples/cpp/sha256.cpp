#include "sha256.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <vector>

#include "error.h"

namespace mmad_fast_infer {
namespace {

constexpr int64_t kBlockBytes = 64;

using Words = std::array<uint32_t, 8>;

uint32_t rotate(uint32_t word, int count) { return word >> count | word << (32 - count); }

// The first 32 bits of the fractional parts of a root of the first primes.
template <std::size_t count>
std::array<uint32_t, count> root_fractions(long double (*root)(long double)) {
  std::array<uint32_t, count> fractions;
  std::size_t found = 0;
  for (int candidate = 2; found < count; ++candidate) {
    bool is_prime = true;
    for (int factor = 2; factor * factor <= candidate; ++factor) {
      is_prime = is_prime && candidate % factor != 0;
    }
    if (!is_prime) continue;
    const long double value = root(candidate);
    fractions[found++] = static_cast<uint32_t>((value - std::floor(value)) * 4294967296.0L);
  }
  return fractions;
}

void digest_block(const uint8_t* block, Words& hash) {
  static const auto constants = root_fractions<64>([](long double x) { return std::cbrt(x); });
  std::array<uint32_t, 64> w;
  for (int i = 0; i < 16; ++i) {
    w[i] = uint32_t{block[4 * i]} << 24 | uint32_t{block[4 * i + 1]} << 16 |
           uint32_t{block[4 * i + 2]} << 8 | block[4 * i + 3];
  }
  for (int i = 16; i < 64; ++i) {
    const uint32_t low = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
    const uint32_t high = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + low + w[i - 7] + high;
  }
  auto [a, b, c, d, e, f, g, h] = hash;
  for (int i = 0; i < 64; ++i) {
    const uint32_t first = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                           (g ^ (e & (f ^ g))) + constants[i] + w[i];
    const uint32_t second =
        (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) | (c & (a | b)));
    h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
  }
  const Words added = {a, b, c, d, e, f, g, h};
  for (int i = 0; i < 8; ++i) hash[i] += added[i];
}

std::string hexadecimal(const Words& hash) {
  std::string digits;
  for (const uint32_t word : hash) {
    for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[word >> shift & 15];
  }
  return digits;
}

}  // namespace

std::string sha256(std::istream& stream) {
  Words hash = root_fractions<8>([](long double x) { return std::sqrt(x); });
  std::vector<uint8_t> buffer(1 << 20);
  uint64_t total = 0;
  do {
    stream.read(reinterpret_cast<char*>(buffer.data()),
                static_cast<std::streamsize>(buffer.size()));
    const int64_t count = stream.gcount();
    total += count;
    if (stream.eof()) {  // the end: a 1 bit, zeros, and the length in bits
      buffer.resize(count);
      buffer.push_back(0x80);
      while (buffer.size() % kBlockBytes != kBlockBytes - 8) buffer.push_back(0);
      for (int shift = 56; shift >= 0; shift -= 8) {
        buffer.push_back(static_cast<uint8_t>(8 * total >> shift));
      }
    } else if (!stream) {
      throw InferError(text("reading stopped after ", total, " bytes"));
    }
    for (std::size_t at = 0; at < buffer.size(); at += kBlockBytes) digest_block(&buffer[at], hash);
  } while (!stream.eof());
  return hexadecimal(hash);
}

std::string sha256_of_file(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) {
    throw InferError(text(file.string(), ": cannot be read; check that you may read it"));
  }
  return sha256(stream);
}

}  // namespace mmad_fast_infer
