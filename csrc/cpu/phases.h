// A team that packs a part of the tokens together, waits, shares out the work on what was packed, waits, and goes on.
#pragma once

#include "parallel.h"
#include "workspace.h"

namespace sparse_ft {
namespace {

struct Phase {
  int64_t& next;
  Barrier& barrier;
  int team;

  // Calls f(unit) for units 0 … count - 1, each on one thread; returns when all are done.
  template <class F>
  void share(int64_t count, F&& f) const {
    for (int64_t unit; (unit = take(next)) < count;) f(unit);
    wait_for_team(barrier, team);
  }
};

// For every step of `total`: f(first, count, pack phase, add phase, thread) on each thread.
template <class F>
void in_phases(int64_t total, int64_t step, int threads, F&& f) {
  const int64_t steps = divide_up(total, step);
  const Workspace counters(Pieces::bytes<int64_t>(2 * steps));
  int64_t* next = counters.pieces().cut<int64_t>(2 * steps);
  memset(next, 0, 2 * steps * sizeof(int64_t));
  Barrier barrier;
  parallel(threads, [&](int thread, int team) {
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t first = i * step, count = total - first < step ? total - first : step;
      f(first, count, Phase{next[2 * i], barrier, team}, Phase{next[2 * i + 1], barrier, team}, thread);
    }
  });
}

}  // namespace
}  // namespace sparse_ft
