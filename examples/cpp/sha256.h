// SHA-256 (FIPS 180-4).
#pragma once

#include <filesystem>
#include <istream>
#include <string>

namespace mmad_fast_infer {

// 64 lower-case hexadecimal digits of what is left of the stream. Throws InferError where it cannot
// be read to its end.
std::string sha256(std::istream& stream);

// The same of a whole file.
std::string sha256_of_file(const std::filesystem::path& file);

}  // namespace mmad_fast_infer
