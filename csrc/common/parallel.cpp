#include "common/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mmad_fast {
namespace {

int default_num_threads() {
  if (const char* text = std::getenv("MMAD_FAST_NUM_THREADS")) {
    const int count = std::atoi(text);
    if (count >= 1) return count;
  }
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

// One parallel_for call: the pool's threads and the caller take ranges until none is left.
struct Job {
  int64_t count;
  int64_t grain;
  const std::function<void(int64_t, int64_t)>* body;
  std::atomic<int64_t> next{0};
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

class Pool {
 public:
  explicit Pool(int workers) {
    try {
      for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      // The system gives no more threads. Those that started, or the caller alone, do the work.
    }
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      ++generation_;
    }
    wake_.notify_all();
    job.run();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a worker that wakes only now finds nothing: nobody waits for it
    done_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  void work() {
    inside_body = true;
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      Job* job = job_;
      if (!job) continue;
      ++active_;
      lock.unlock();
      job->run();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;  // guards all below but threads_
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  uint64_t generation_ = 0;
  int active_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;  // last: they use the members above as soon as they start
};

constexpr int kMaxThreads = 1024;
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

int num_threads() {
  int count = requested_threads.load();
  if (count == 0) {
    int expected = 0;
    requested_threads.compare_exchange_strong(expected, default_num_threads());
    count = requested_threads.load();
  }
  return std::min(count, kMaxThreads);
}

void set_num_threads(int count) { requested_threads.store(std::max(1, count)); }

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
