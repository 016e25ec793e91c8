// One small thread pool for all CPU kernels.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace mmad_fast {

// Number of threads that kernels use: what was set, else the environment's MMAD_FAST_NUM_THREADS if
// that is a positive number and nothing else, else the cores that this process may run on, or fewer
// where its control group has a quota of processor time. At most 1024.
int num_threads();

// Cores' worth of time that the control groups of this process leave it, rounded up; 0 for no
// limit. The files are read below `root`: "" but in tests.
int cgroup_cores(const std::string& root);

// Sets the number of threads; count >= 1.
void set_num_threads(int count);

// Calls body(begin, end) for consecutive ranges that cover [0, count), each at most `grain` long
// (grain >= 1), on the pool and the calling thread. Returns when all are done. Ranges are handed
// out dynamically, so the work of a range must not depend on which thread runs it. When the pool is
// busy with another caller, or when called from inside a body, all ranges run on the calling
// thread. A forked child may call it: it starts a pool of its own. The first exception thrown by a
// body is rethrown here. For some tens of microseconds afterwards the pool's threads watch for the
// next call, then they sleep.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace mmad_fast
