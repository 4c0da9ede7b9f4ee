// One parallel region a call, on the OpenMP runtime that PyTorch already runs.
#pragma once

#include <cstdint>
#include <string>

namespace sparse_ft {

using ParallelBody = void (*)(void* context, int thread, int team);

// Runs body(context, 0 .. team - 1, team) at once, team <= threads. The body must not throw.
void run_parallel(int threads, ParallelBody body, void* context);

// Where threads come from: the path of the OpenMP library that is used, or "std::thread".
std::string thread_runtime();

struct Barrier {
  int arrived = 0;
  int phase = 0;
};
void wait_for_team(Barrier& barrier, int team);

template <class F>
static inline void parallel(int threads, F&& f) {
  if (threads <= 1) return f(0, 1);
  run_parallel(
      threads, [](void* context, int thread, int team) { (*static_cast<F*>(context))(thread, team); }, &f);
}

// At most `threads`, each with 25 µs of work or more. Waking a thread costs some 5 µs, and where another process holds its
// core the whole team waits for it: milliseconds.
static inline int team_for(double nanoseconds, int threads) {
  const double worth = nanoseconds / 25e3;
  return worth >= threads ? threads : worth >= 1 ? static_cast<int>(worth) : 1;
}

// Hands out 0, 1, 2 … to the team. Units are small and each is worked by one thread, so results do not depend on who takes it.
static inline int64_t take(int64_t& counter) { return __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED); }

}  // namespace sparse_ft
