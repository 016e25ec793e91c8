#include "manifest_digest.h"

#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "error.h"
#include "sha256.h"

namespace mmad_fast_infer {
namespace {

using nlohmann::json;

std::string json_string(const std::string& value) { return json(value).dump(-1, ' ', true); }

// Writes the canonical form while the text is read: a parsed float would have lost its spelling.
class CanonicalText : public json::json_sax_t {
 public:
  const std::string& result() const { return result_; }

  bool null() override { return add("null"); }
  bool boolean(bool value) override { return add(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return add(std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override { return add(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& spelling) override { return add(spelling); }
  bool string(string_t& value) override { return add(json_string(value)); }
  bool binary(binary_t&) override { return false; }  // not in JSON
  bool start_object(std::size_t) override { return open(true); }
  bool start_array(std::size_t) override { return open(false); }
  bool key(string_t& value) override {
    open_.back().key = value;
    return true;
  }
  bool end_object() override {
    std::string members;
    const std::map<std::string, std::string> sorted = std::move(open_.back().members);
    open_.pop_back();
    for (const auto& [name, value] : sorted) {
      if (open_.empty() && name == kDigestKey) continue;
      members += (members.empty() ? "" : ",") + json_string(name) + ":" + value;
    }
    return add("{" + members + "}");
  }
  bool end_array() override {
    const std::string items = std::move(open_.back().items);
    open_.pop_back();
    return add("[" + items + "]");
  }
  bool parse_error(std::size_t, const std::string&, const json::exception&) override {
    return false;
  }

 private:
  // An object or array that has begun; only one of members and items is used.
  struct Open {
    bool is_object;
    std::map<std::string, std::string> members;
    std::string key, items;
  };

  bool open(bool is_object) {
    open_.push_back({is_object, {}, {}, {}});
    return true;
  }
  bool add(const std::string& value) {
    if (open_.empty()) {
      result_ = value;
    } else if (open_.back().is_object) {
      open_.back().members[open_.back().key] = value;
    } else {
      open_.back().items += (open_.back().items.empty() ? "" : ",") + value;
    }
    return true;
  }

  std::vector<Open> open_;
  std::string result_;
};

}  // namespace

std::string manifest_digest(const std::string& manifest) {
  CanonicalText canonical;
  if (!json::sax_parse(manifest, &canonical)) throw InferError("the manifest is not JSON");
  std::istringstream stream(canonical.result());
  return sha256(stream);
}

}  // namespace mmad_fast_infer
