// SHA-256 (FIPS 180-4) of a file.
#pragma once

#include <filesystem>
#include <string>

namespace mmad_fast_infer {

// 64 lower-case hexadecimal digits. Throws InferError where the file cannot be read.
std::string sha256_of_file(const std::filesystem::path& file);

}  // namespace mmad_fast_infer
