// Thread-block clusters, for the host: see cuda_runtime.h.
#pragma once

#include <cuda_runtime.h>

namespace cooperative_groups {

class cluster_group {
 public:
  static void sync(int line = __builtin_LINE()) { cuda_emulation::cluster_barrier(line); }
  static unsigned block_rank() { return cuda_emulation::cluster_rank(); }
  static unsigned num_blocks() { return cuda_emulation::cluster_size(); }
  template <typename T>
  static T* map_shared_rank(T* address, int rank) {
    return static_cast<T*>(
        cuda_emulation::map_shared_rank(const_cast<std::remove_cv_t<T>*>(address), rank));
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
