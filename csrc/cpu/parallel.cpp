#include "parallel.h"

#include <dlfcn.h>
#include <sched.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace sparse_ft {
namespace {

// A second OpenMP runtime would bring a second pool of spinning workers, so none is linked: PyTorch loads its own with
// global symbols, and the three functions below are looked up there. LLVM's runtime offers the same entry points.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
};

template <class F>
void look_up(F*& function, const char* name) {
  function = reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name));
}

const OpenMP* openmp() {
  static std::atomic<const OpenMP*> found{nullptr};
  if (const OpenMP* known = found.load(std::memory_order_acquire)) return known;
  OpenMP runtime;
  look_up(runtime.parallel, "GOMP_parallel");
  look_up(runtime.thread_num, "omp_get_thread_num");
  look_up(runtime.num_threads, "omp_get_num_threads");
  if (!runtime.parallel || !runtime.thread_num || !runtime.num_threads) return nullptr;  // asked again: torch may load later
  static const OpenMP kept = runtime;
  found.store(&kept, std::memory_order_release);
  return &kept;
}

struct Region {
  ParallelBody body;
  void* context;
  const OpenMP* runtime;
};

void enter(void* argument) {
  const Region& region = *static_cast<Region*>(argument);
  region.body(region.context, region.runtime->thread_num(), region.runtime->num_threads());
}

void run_std_threads(int threads, ParallelBody body, void* context) {
  std::atomic<int> team{0};  // known once every thread that could start has started
  std::vector<std::thread> workers;
  const auto work = [&](int thread) {
    while (team.load(std::memory_order_acquire) == 0) sched_yield();
    body(context, thread, team.load(std::memory_order_relaxed));
  };
  try {
    workers.reserve(threads - 1);
    for (int thread = 1; thread < threads; ++thread) workers.emplace_back(work, thread);
  } catch (const std::exception&) {  // no more threads to be had: a smaller team does the work
  }
  team.store(static_cast<int>(workers.size()) + 1, std::memory_order_release);
  work(0);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

void run_parallel(int threads, ParallelBody body, void* context) {
  if (threads <= 1) return body(context, 0, 1);
  const OpenMP* runtime = openmp();
  if (!runtime) return run_std_threads(threads, body, context);
  Region region{body, context, runtime};
  runtime->parallel(enter, &region, static_cast<unsigned>(threads), 0);
}

std::string thread_runtime() {
  const OpenMP* runtime = openmp();
  Dl_info info;
  if (!runtime) return "std::thread";
  return dladdr(reinterpret_cast<void*>(runtime->parallel), &info) && info.dli_fname ? info.dli_fname : "OpenMP";
}

void wait_for_team(Barrier& barrier, int team) {
  const int phase = __atomic_load_n(&barrier.phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&barrier.arrived, 1, __ATOMIC_ACQ_REL) == team) {
    __atomic_store_n(&barrier.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier.phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&barrier.phase, __ATOMIC_ACQUIRE) == phase; ++spins)
    if (spins > 1000) sched_yield();
}

}  // namespace sparse_ft
