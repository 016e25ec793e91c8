// mmad_fast_infer: runs a CFM detector artifact on one scan. No Python, no torch.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "artifact.h"
#include "cfm.h"
#include "common/gemm.h"
#include "common/parallel.h"
#include "error.h"
#include "safetensors.h"
#include "scan.h"

namespace mmad_fast_infer {
namespace {

constexpr int kSame = 0, kDiffers = 1, kRefused = 2;
// As GOLDEN_TOLERANCE in mmad_fast/detector.py: other processors and versions round differently.
constexpr double kGoldenTolerance = 1e-3;

constexpr const char* kUsage =
    "usage: mmad_fast_infer ARTIFACT [SCAN.safetensors] [options]\n"
    "\n"
    "ARTIFACT is the folder that `mmad-fast fit` wrote. SCAN holds the tensors rgb (H, W, 3) U8 "
    "and\n"
    "xyz (H, W, 3) F32 or F64; without it the artifact's golden scan is run and its answer "
    "compared\n"
    "with the expected one.\n"
    "\n"
    "  --map FILE     write the anomaly map (S, S) F32 and the score as FILE, a safetensors file\n"
    "  --unit m|mm    unit of the scan's xyz; m\n"
    "  --threads N    threads of the kernels and of ONNX Runtime; all cores\n"
    "  --runs N       run N times and print the median of each stage; 1\n"
    "\n"
    "exit code: 0 done, 1 the golden scan's answer differs from the expected one, 2 refused\n";

struct Options {
  std::string artifact, scan, map;
  double metres_per_unit = 1.0;
  int num_threads = 0;  // 0: as the kernels choose
  int num_runs = 1;
};

int parse_count(const std::string& option, const std::string& value, int maximum) {
  char* end = nullptr;
  const long count = std::strtol(value.c_str(), &end, 10);
  if (value.empty() || *end != '\0' || count < 1 || count > maximum) {
    throw InferError(text(option, " is '", value, "'; it must be a number in 1..", maximum));
  }
  return static_cast<int>(count);
}

Options parse_options(const std::vector<std::string>& arguments) {
  Options options;
  std::vector<std::string> paths;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.rfind("--", 0) != 0) {
      paths.push_back(argument);
      continue;
    }
    const bool is_known = argument == "--map" || argument == "--unit" || argument == "--threads" ||
                          argument == "--runs";
    if (!is_known) throw InferError(text("there is no option ", argument, "\n\n", kUsage));
    if (++i == arguments.size()) throw InferError(text(argument, " needs a value\n\n", kUsage));
    const std::string& value = arguments[i];
    if (argument == "--map") options.map = value;
    if (argument == "--threads") options.num_threads = parse_count(argument, value, 1024);
    if (argument == "--runs") options.num_runs = parse_count(argument, value, 100000);
    if (argument == "--unit") {
      if (value != "m" && value != "mm") {
        throw InferError(text("--unit is '", value, "'; it must be m or mm"));
      }
      options.metres_per_unit = value == "m" ? 1.0 : 1e-3;
    }
  }
  if (paths.empty() || paths.size() > 2) {
    throw InferError(text("got ", paths.size(), " paths; an artifact and at most one scan are ",
                          "needed\n\n", kUsage));
  }
  options.artifact = paths[0];
  if (paths.size() == 2) options.scan = paths[1];
  return options;
}

// The stages of all runs as the median of each.
StageTimes median_times(const std::vector<StageTimes>& runs) {
  StageTimes medians = runs.front();
  for (std::size_t stage = 0; stage < medians.size(); ++stage) {
    std::vector<double> times;
    for (const StageTimes& run : runs) times.push_back(run[stage].second);
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    medians[stage].second = times[times.size() / 2];
  }
  return medians;
}

void print_answer(const Answer& answer, const Artifact& artifact) {
  std::printf("score      %.9g\n", answer.image_score);
  if (artifact.threshold) {
    std::printf("threshold  %.9g\n", *artifact.threshold);
    std::printf("decision   %s\n", answer.image_score > *artifact.threshold ? "anomalous" : "good");
  } else {
    std::printf("threshold  none\ndecision   none: the artifact has no threshold\n");
  }
}

void print_times(const StageTimes& times, int num_runs) {
  std::printf("\n%-16s %10s\n", "stage", num_runs == 1 ? "ms" : "ms, median");
  double total = 0;
  for (const auto& [name, milliseconds] : times) {
    std::printf("%-16s %10.2f\n", name.c_str(), milliseconds);
    total += milliseconds;
  }
  std::printf("%-16s %10.2f\n", "sum", total);
}

// Largest difference of the anomaly maps, relative to the expected maximum; NaN where a value is.
double map_difference(const std::vector<float>& found, const std::vector<float>& expected) {
  double scale = std::numeric_limits<float>::min(), difference = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double here = std::abs(static_cast<double>(found[i]) - expected[i]);
    scale = std::max(scale, std::abs(static_cast<double>(expected[i])));
    if (!(here <= difference)) difference = here;
  }
  return difference / scale;
}

// Whether the answer is the one in the golden file.
bool compare_with_golden(const Answer& answer, const Artifact& artifact, const Tensors& golden) {
  const std::filesystem::path file = artifact.golden_file();
  const Tensor &map = find_tensor(golden, "map", file), &score = find_tensor(golden, "score", file);
  const int64_t side = artifact.parameters.grid_size;
  if (map.dtype != "F32" || map.shape != std::vector<int64_t>{side, side} || score.dtype != "F64" ||
      score.bytes.size() != sizeof(double)) {
    throw InferError(text(file.string(), ": map is ", map.dtype, " ", shape_text(map.shape),
                          " and score is ", score.dtype, " ", shape_text(score.shape),
                          "; they must be F32 ", shape_text({side, side}),
                          " and one F64; fit the detector again"));
  }
  const double difference = map_difference(answer.anomaly_map, map.values<float>());
  const double expected = score.values<double>().front();
  const double score_difference = std::abs(answer.image_score - expected);
  const bool is_same =
      difference <= kGoldenTolerance && score_difference <= kGoldenTolerance * std::abs(expected);
  std::printf(
      "\ngolden scan: expected score %.9g, largest difference of the map %.2e of its maximum: ",
      expected, difference);
  std::printf("%s (tolerance %.0e)\n", is_same ? "the same answer" : "ANOTHER ANSWER",
              kGoldenTolerance);
  return is_same;
}

int run(const Options& options) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const Artifact artifact = read_artifact(options.artifact);
  const bool is_golden = options.scan.empty();
  const std::filesystem::path scan_file =
      is_golden ? artifact.golden_file() : std::filesystem::path(options.scan);
  const Tensors tensors = read_safetensors(scan_file);
  const Scan scan = read_scan(tensors, scan_file, is_golden ? 1.0 : options.metres_per_unit);
  if (options.num_threads > 0) mmad_fast::set_num_threads(options.num_threads);
  OnnxRuntime runtime(mmad_fast::num_threads());
  CfmDetector detector(artifact, runtime);
  const std::chrono::duration<double, std::milli> loading = Clock::now() - begin;

  Answer answer;
  std::vector<StageTimes> times;
  for (int i = 0; i < options.num_runs; ++i) {
    answer = detector.infer(scan);
    times.push_back(answer.stage_ms);
  }
  std::printf("artifact   %s (%s, schema %lld)\n", options.artifact.c_str(),
              artifact.method.c_str(), static_cast<long long>(artifact.schema));
  std::printf("scan       %s (%lldx%lld)\n", scan_file.c_str(), static_cast<long long>(scan.height),
              static_cast<long long>(scan.width));
  std::printf("engine     ONNX Runtime %s, %d threads, loaded in %.0f ms\n",
              OnnxRuntime::version().c_str(), mmad_fast::num_threads(), loading.count());
  print_answer(answer, artifact);
  print_times(median_times(times), options.num_runs);
  if (!options.map.empty()) {
    const int64_t side = artifact.parameters.grid_size;
    const std::vector<double> score = {answer.image_score};
    write_safetensors(options.map, {{"map", make_tensor("F32", {side, side}, answer.anomaly_map)},
                                    {"score", make_tensor("F64", {1}, score)}});
    std::printf("\nwrote %s\n", options.map.c_str());
  }
  return !is_golden || compare_with_golden(answer, artifact, tensors) ? kSame : kDiffers;
}

}  // namespace
}  // namespace mmad_fast_infer

int main(int argc, char** argv) {
  using namespace mmad_fast_infer;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  for (const std::string& argument : arguments) {
    if (argument == "--help" || argument == "-h") {
      std::fputs(kUsage, stdout);
      return kSame;
    }
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
