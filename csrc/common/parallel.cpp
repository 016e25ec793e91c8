#include "common/parallel.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
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

class Pool {
 public:
  explicit Pool(int workers) {
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int workers() const { return static_cast<int>(threads_.size()); }

  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      ++generation_;
      pending_ = workers();
    }
    wake_.notify_all();
    job.run();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    job_ = nullptr;
  }

 private:
  void work();

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  uint64_t generation_ = 0;
  int pending_ = 0;
  bool stopping_ = false;
};

thread_local bool inside_body = false;

void Pool::work() {
  inside_body = true;
  uint64_t seen = 0;
  for (;;) {
    Job* job;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      job = job_;
    }
    job->run();
    std::lock_guard<std::mutex> lock(mutex_);
    if (--pending_ == 0) done_.notify_one();
  }
}

std::atomic<int> requested_threads{0};
std::mutex pool_mutex;  // held for the length of a parallel_for: one caller has the pool at a time
Pool* pool = nullptr;   // never destroyed at exit: its threads may not be joined then
pid_t pool_owner = 0;   // a forked child has no pool threads and must make its own

}  // namespace

int num_threads() {
  int count = requested_threads.load();
  if (count == 0) {
    int expected = 0;
    requested_threads.compare_exchange_strong(expected, default_num_threads());
    count = requested_threads.load();
  }
  return count;
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
  std::unique_lock<std::mutex> lock(pool_mutex, std::defer_lock);
  if (threads > 1 && count > grain && !inside_body && lock.try_lock()) {
    if (pool_owner != getpid()) {
      pool = nullptr;
      pool_owner = getpid();
    }
    if (!pool || pool->workers() != threads - 1) {
      delete pool;
      pool = nullptr;
      pool = new Pool(threads - 1);
    }
    inside_body = true;
    pool->run(job);
    inside_body = false;
  } else {
    job.run();
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace mmad_fast
