// What the program refuses: what was given, what is needed, what to do.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace mmad_fast_infer {

class InferError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The parts one after the other, as a stream would print them.
template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

}  // namespace mmad_fast_infer
