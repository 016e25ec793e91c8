// The sha256 that an artifact's manifest carries of itself.
#pragma once

#include <string>

namespace mmad_fast_infer {

constexpr const char* kDigestKey = "manifest_sha256";

// The digest of a manifest's text without that key. It is that of the text's canonical form, as of
// Python's json.dumps(content, sort_keys=True, separators=(",", ":")), in which the numbers are
// spelled as in the text. The text must be JSON.
std::string manifest_digest(const std::string& manifest);

}  // namespace mmad_fast_infer
