// mmad_fast_infer: runs a CFM detector artifact on one scan. No Python, no torch.
#include <algorithm>
#include <cfloat>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

#include "cfm.h"
#include "common/parallel.h"
#include "error.h"

namespace mmad_fast_infer {
namespace {

constexpr int kSame = 0, kDiffers = 1, kRefused = 2;
// As GOLDEN_TOLERANCE in mmad_fast/detector.py: other processors and versions round differently.
constexpr double kGoldenTolerance = 1e-3;

constexpr const char* kUsage = R"(usage: mmad_fast_infer ARTIFACT [SCAN.safetensors] [options]

ARTIFACT is the folder that `mmad-fast fit` wrote. SCAN holds the tensors rgb (H, W, 3) U8 and
xyz (H, W, 3) F32 or F64; without it the artifact's golden scan is run and its answer compared
with the expected one.

  --map FILE     write the anomaly map (S, S) F32 and the score as FILE, a safetensors file
  --unit m|mm    unit of the scan's xyz; m
  --missing N    number that stands for no measurement in xyz; what the fit saw, and one point at
                 many pixels, is known or found
  --threads N    threads of the kernels and of ONNX Runtime; all cores
  --runs N       run N times and print the median of each stage; 1

exit code: 0 done, 1 the golden scan's answer differs from the expected one, 2 refused
)";

struct Options {
  std::vector<std::string> paths;
  std::map<std::string, std::string> named = {
      {"--map", ""}, {"--unit", "m"}, {"--missing", ""}, {"--threads", ""}, {"--runs", "1"}};

  int count(const std::string& option, int maximum) const {
    const std::string& value = named.at(option);
    char* end = nullptr;
    const long number = std::strtol(value.c_str(), &end, 10);
    if (*end == '\0' && number >= 1 && number <= maximum) return static_cast<int>(number);
    throw InferError(text(option, " is '", value, "'; it must be a number in 1..", maximum));
  }
};

// What --missing says; nothing where it is not given.
std::optional<double> missing_number(const std::string& value) {
  char* end = nullptr;
  const double number = std::strtod(value.c_str(), &end);
  if (value.empty()) return std::nullopt;
  if (*end == '\0' && std::isfinite(number)) return number;
  throw InferError(text("--missing is '", value, "'; it must be a number, e.g. -9999"));
}

// Says what was taken as missing where it is most of a scan, unless it was so at the fit.
void warn_of_missing_values(const Scan& scan, const Artifact& artifact, double units_per_metre) {
  int64_t num_missing = 0, num_measured = 0;
  for (const auto& mark : scan.missing) num_missing += mark.num_pixels;
  for (std::size_t i = 2; i < scan.xyz.size(); i += 3) num_measured += scan.xyz[i] != 0;
  if (num_missing <= num_measured || artifact.largest_missing_share > 0.5) return;
  for (const auto& [value, count] : scan.missing) {
    std::printf(
        "missing    (%.7g, %.7g, %.7g) at %.1f %% of the pixels; not so at the fit: check "
        "the sensor\n",
        value[0] * units_per_metre, value[1] * units_per_metre, value[2] * units_per_metre,
        100.0 * static_cast<double>(count) / static_cast<double>(scan.height * scan.width));
  }
}

Options parse_options(const std::vector<std::string>& arguments) {
  Options options;
  for (auto argument = arguments.begin(); argument != arguments.end(); ++argument) {
    const auto option = options.named.find(*argument);
    if (argument->rfind("--", 0) != 0) {
      options.paths.push_back(*argument);
    } else if (option == options.named.end()) {
      throw InferError(text("there is no option ", *argument, "\n\n", kUsage));
    } else if (argument + 1 == arguments.end()) {
      throw InferError(text(*argument, " needs a value\n\n", kUsage));
    } else {
      option->second = *++argument;
    }
  }
  const std::string& unit = options.named["--unit"];
  if (unit != "m" && unit != "mm") {
    throw InferError(text("--unit is '", unit, "'; it must be m or mm"));
  }
  if (!options.paths.empty() && options.paths.size() <= 2) return options;
  throw InferError(text("got ", options.paths.size(), " paths; an artifact and at most one scan ",
                        "are needed\n\n", kUsage));
}

// The median of each stage over the runs, and their sum.
void print_times(const std::vector<StageTimes>& runs) {
  std::printf("\n%-16s %10s\n", "stage", runs.size() == 1 ? "ms" : "ms, median");
  double total = 0;
  for (std::size_t stage = 0; stage < runs.front().size(); ++stage) {
    std::vector<double> times;
    for (const StageTimes& run : runs) times.push_back(run[stage].second);
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    std::printf("%-16s %10.2f\n", runs.front()[stage].first.c_str(), times[times.size() / 2]);
    total += times[times.size() / 2];
  }
  std::printf("%-16s %10.2f\n", "sum", total);
}

// Whether the answer is the one in the golden file; prints how far they are apart.
bool compare_with_golden(const Answer& answer, const Artifact& artifact, const Tensors& golden) {
  const std::filesystem::path file = artifact.golden_file();
  const int64_t side = artifact.parameters.grid_size;
  const std::vector<float>& map = find_floats(golden, "map", {side, side}, file);
  const std::vector<double>& score = find_tensor(golden, "score", file).doubles;
  if (score.size() != 1) throw InferError(text(file.string(), ": score must be one F64"));
  float difference = 0;
  for (std::size_t i = 0; i < map.size(); ++i) {
    difference = std::max(difference, std::abs(answer.anomaly_map[i] - map[i]));
  }
  difference /= std::max(*std::max_element(map.begin(), map.end()), FLT_MIN);
  const bool is_same = difference <= kGoldenTolerance && std::abs(answer.image_score - score[0]) <=
                                                             kGoldenTolerance * std::abs(score[0]);
  std::printf(
      "\ngolden scan: expected score %.9g, largest difference of the map %.2e of its maximum: "
      "%s (tolerance %.0e)\n",
      score[0], difference, is_same ? "the same answer" : "ANOTHER ANSWER", kGoldenTolerance);
  return is_same;
}

int run(const Options& options) {
  const int num_runs = options.count("--runs", 100000);
  if (!options.named.at("--threads").empty()) {
    mmad_fast::set_num_threads(options.count("--threads", 1024));
  }
  const auto begin = std::chrono::steady_clock::now();
  const Artifact artifact = read_artifact(options.paths[0]);
  const bool is_golden = options.paths.size() == 1;
  const std::filesystem::path file =
      is_golden ? artifact.golden_file() : std::filesystem::path(options.paths[1]);
  const Tensors tensors = read_safetensors(file, artifact.source_of(file));
  const Coordinates kind = {options.named.at("--unit") == "m" ? 1.0 : 1e3,
                            missing_number(options.named.at("--missing")), artifact.missing_values};
  const Scan scan = is_golden ? read_golden_scan(tensors, file) : read_scan(tensors, file, kind);
  OnnxRuntime runtime(mmad_fast::num_threads());
  CfmDetector detector(artifact, runtime);
  const std::chrono::duration<double, std::milli> loading =
      std::chrono::steady_clock::now() - begin;

  Answer answer;
  std::vector<StageTimes> times;
  for (int i = 0; i < num_runs; ++i) {
    answer = detector.infer(scan);
    times.push_back(answer.stage_ms);
  }
  std::printf("artifact   %s (%s, schema %d)\nscan       %s (%dx%d)\n", artifact.folder.c_str(),
              artifact.method.c_str(), static_cast<int>(artifact.schema), file.c_str(),
              static_cast<int>(scan.height), static_cast<int>(scan.width));
  warn_of_missing_values(scan, artifact, kind.units_per_metre);
  std::printf("engine     ONNX Runtime %s, %d threads, loaded in %.0f ms\n",
              OnnxRuntime::version().c_str(), mmad_fast::num_threads(), loading.count());
  std::printf("score      %.9g\n", answer.image_score);
  if (const auto& threshold = artifact.threshold) {
    const char* decision = answer.image_score > *threshold ? "anomalous" : "good";
    std::printf("threshold  %.9g\ndecision   %s\n", *threshold, decision);
  } else {
    std::printf("threshold  none\ndecision   none: the artifact has no threshold\n");
  }
  print_times(times);
  if (const std::string& target = options.named.at("--map"); !target.empty()) {
    write_answer(target, artifact.parameters.grid_size, answer.anomaly_map, answer.image_score);
    std::printf("\nwrote %s\n", target.c_str());
  }
  return !is_golden || compare_with_golden(answer, artifact, tensors) ? kSame : kDiffers;
}

}  // namespace
}  // namespace mmad_fast_infer

int main(int argc, char** argv) {
  using namespace mmad_fast_infer;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  for (const char* help : {"--help", "-h"}) {
    if (std::count(arguments.begin(), arguments.end(), help))
      return std::fputs(kUsage, stdout), kSame;
  }
  try {
    return run(parse_options(arguments));
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "error: there is not enough memory for this artifact and scan\n");
  } catch (const std::exception& error) {  // InferError, or what a library throws
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  return kRefused;
}
