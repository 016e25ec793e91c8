#include "common/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace mmad_fast {
namespace {

constexpr int kMaxThreads = 1024;

int usable_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

// The first of a file's words, as many as it has.
std::vector<std::string> words_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istream_iterator<std::string>(file), std::istream_iterator<std::string>()};
}

// Cores' worth of time that a group may take, 0 where it has no limit: cpu.max of version 2 is
// "quota period" or "max period", in microseconds; version 1 has a file for each, -1 for no limit.
int quota_of(const std::string& folder) {
  auto words = words_of(folder + "/cpu.max");
  if (words.empty()) {
    words = words_of(folder + "/cpu.cfs_quota_us");
    for (const std::string& word : words_of(folder + "/cpu.cfs_period_us")) words.push_back(word);
  }
  if (words.size() != 2) return 0;
  const double quota = std::atof(words[0].c_str()), period = std::atof(words[1].c_str());
  if (!(quota > 0 && period > 0)) return 0;
  return static_cast<int>(std::clamp(std::ceil(quota / period), 1.0, double{kMaxThreads}));
}

int default_num_threads() {
  if (const char* text = std::getenv("MMAD_FAST_NUM_THREADS")) {
    char* end = nullptr;
    const long count = std::strtol(text, &end, 10);  // what overflows becomes LONG_MAX
    if (end != text && *end == '\0' && count >= 1) {
      return static_cast<int>(std::min<long>(count, kMaxThreads));
    }
  }
  const int quota = cgroup_cores("");
  return std::min({usable_cores(), quota > 0 ? quota : kMaxThreads, kMaxThreads});
}

// Waking a sleeping thread takes longer (20 to 100 us) than many jobs. Kernels often start one job
// after the other, so threads look for the next one for this long before they sleep: less than a
// wake-up costs, and nothing that other programs or an inference engine would notice.
constexpr std::chrono::microseconds kSpinTime{50};

// True as soon as `is_ready` is; false if it stays false for kSpinTime.
template <typename Condition>
bool spin_until(const Condition& is_ready) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 16; ++i) {
      if (is_ready()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
    std::this_thread::yield();  // the thread that is waited for may need this very core
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// One parallel_for call: the pool's threads and the caller take ranges until none is left.
struct Job {
  int64_t count;
  int64_t grain;
  const std::function<void(int64_t, int64_t)>* body;
  alignas(64) std::atomic<int64_t> next{0};  // away from what all threads only read
  std::mutex error_mutex;
  std::exception_ptr error;

  void run() {
    for (;;) {
      const int64_t begin = next.fetch_add(grain);
      if (begin >= count) return;
      try {
        (*body)(begin, std::min(count, begin + grain));
      } catch (...) {
        next.store(count);
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
      }
    }
  }
};

thread_local bool inside_body = false;

// Threads that take part in one job at a time. A worker announces itself in active_ before it looks
// at job_, and the caller takes job_ away before it looks at active_: it may leave once that is 0.
// The mutex is only for going to sleep and waking up. All atomics are sequentially consistent: each
// side writes its own variable and then reads the other's.
class Pool {
 public:
  explicit Pool(int workers) : spins_(workers < usable_cores()) {
    try {
      for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      // The system gives no more threads. Those that started, or the caller alone, do the work.
    }
  }
  ~Pool() {
    stopping_ = true;
    announce();
    for (auto& thread : threads_) thread.join();
  }

  void run(Job& job) {
    job_ = &job;
    announce();
    job.run();
    job_ = nullptr;  // a worker that wakes only now finds nothing: nobody waits for it
    const auto is_done = [this] { return active_ == 0; };
    if (is_done() || (spins_ && spin_until(is_done))) return;
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_ = true;
    done_.wait(lock, is_done);
    caller_sleeps_ = false;
  }

 private:
  void announce() {
    ++generation_;
    if (sleepers_ > 0) wake_up(wake_);
  }

  // Wakes those who sleep, and those who decided to but still hold the mutex.
  void wake_up(std::condition_variable& sleepers) {
    std::unique_lock<std::mutex>(mutex_).unlock();
    sleepers.notify_all();
  }

  void work() {
    inside_body = true;
    uint64_t seen = 0;
    const auto has_news = [&] { return generation_ != seen; };
    for (;;) {
      if (!has_news() && !(spins_ && spin_until(has_news))) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleepers_;
        wake_.wait(lock, has_news);
        --sleepers_;
      }
      seen = generation_;
      if (stopping_) return;
      ++active_;
      if (Job* job = job_) job->run();
      if (--active_ == 0 && caller_sleeps_) wake_up(done_);
    }
  }

  const bool spins_;  // false where the threads would spin on a core that another of them needs
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> active_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;  // last: they use the members above as soon as they start
};

std::atomic<int> requested_threads{0};

// The one pool. Never destroyed at exit: its threads may not be joined then.
struct State {
  std::mutex caller_mutex;  // held for the length of a parallel_for: one caller at a time
  Pool* pool = nullptr;
  int pool_threads = 0;  // what was asked for; the system may have given fewer
};

// A forked child has none of the pool's threads, and the mutexes may be held by threads that it
// does not have. It starts with a state of its own and leaves the inherited one as it is.
State* new_state();
State* state = new_state();

void renew_state_in_child() {
  state = new State;
  inside_body = false;
}

State* new_state() {
  pthread_atfork(nullptr, nullptr, renew_state_in_child);
  return new State;
}

}  // namespace

int cgroup_cores(const std::string& root) {
  const std::string groups = root + "/sys/fs/cgroup";
  std::ifstream file(root + "/proc/self/cgroup");
  int cores = 0;
  for (std::string line; std::getline(file, line);) {  // number:controllers:/path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool is_version_2 = controllers.empty();
    if (!is_version_2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    // Seen from within a container the path may be that of the host; the container's own group is
    // then the mount itself, which is where the way up ends.
    std::string path = line.substr(second + 1);
    for (;;) {
      for (const std::string& mount : {groups, groups + "/" + controllers, groups + "/cpu"}) {
        const int quota = quota_of(mount + path);
        if (quota > 0) cores = cores > 0 ? std::min(cores, quota) : quota;
      }
      const size_t slash = path.find_last_of('/');
      if (path.empty() || slash == std::string::npos) break;
      path.resize(slash);
    }
  }
  return cores;
}

int num_threads() {
  int count = requested_threads.load();
  if (count == 0) {
    int expected = 0;
    requested_threads.compare_exchange_strong(expected, default_num_threads());
    count = requested_threads.load();
  }
  return count;
}

void set_num_threads(int count) { requested_threads.store(std::clamp(count, 1, kMaxThreads)); }

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int threads = num_threads();
  Job job;
  job.count = count;
  job.grain = grain;
  job.body = &body;
  State& own = *state;
  std::unique_lock<std::mutex> lock(own.caller_mutex, std::defer_lock);
  if (threads > 1 && count > grain && !inside_body && lock.try_lock()) {
    if (!own.pool || own.pool_threads != threads) {
      delete own.pool;
      own.pool = nullptr;
      own.pool = new Pool(threads - 1);
      own.pool_threads = threads;
    }
    inside_body = true;
    own.pool->run(job);
    inside_body = false;
  } else {
    job.run();
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace mmad_fast
