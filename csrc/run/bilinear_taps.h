// Where bilinear resizing reads along one side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mmad_fast {

// Of each output along one side the two inputs and the weight of the second, in single precision as
// torch's interpolate(mode="bilinear", align_corners=False).
struct BilinearTaps {
  std::vector<int64_t> low, high;
  std::vector<float> weight;

  BilinearTaps(int64_t inputs, int64_t outputs) : low(outputs), high(outputs), weight(outputs) {
    const float scale = static_cast<float>(inputs) / static_cast<float>(outputs);
    for (int64_t i = 0; i < outputs; ++i) {
      const float center = std::max(0.0f, (static_cast<float>(i) + 0.5f) * scale - 0.5f);
      low[i] = std::min(static_cast<int64_t>(center), inputs - 1);
      high[i] = std::min(low[i] + 1, inputs - 1);
      weight[i] = center - static_cast<float>(low[i]);
    }
  }
};

}  // namespace mmad_fast
