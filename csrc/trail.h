// What a pass over many objects comes to, asked for a little before it does: between two steps of a
// training all of it has left the cache, and to wait for one line after the other takes longer than
// everything that is done with them.
#pragma once

#include <vector>

namespace sparse_ft {

// The addresses that one pass came to, stop by stop, for the next one. They are fetched, never read, so
// that nothing depends on what lies there by then.
class Trail {
 public:
  // A pass begins.
  void restart() {
    here_ = 0;
    for (size_t i = 0; i < kAhead; ++i) fetch(i);
  }

  // It comes to its next stop, which is about `what`.
  void come_to(const void* what) {
    if (here_ == stops_.size()) stops_.emplace_back();
    fetch(here_ + kAhead);
    Stop& stop = stops_[here_++];
    is_known_ = stop.what == what;
    if (is_known_) return;
    stop.what = what;
    stop.lines.clear();
  }

  // Whether the last pass was here for the same.
  bool is_known() const { return is_known_; }

  // Remember the first bytes at `address` of what this stop is about; null is passed over.
  void note(const void* address, size_t bytes = 1) {
    const char* const from = static_cast<const char*>(address);
    for (size_t at = 0; from && at < bytes; at += kLine) stops_[here_ - 1].lines.push_back(from + at);
  }

  // What this stop is about must be noted anew.
  void forget() { stops_[here_ - 1].what = nullptr; }

 private:
  static constexpr size_t kLine = 64;  // bytes
  static constexpr size_t kAhead = 2;  // stops: some 2 us, where memory takes 0.1 for each of 50 lines
  struct Stop {
    const void* what = nullptr;
    std::vector<const char*> lines;
  };

  void fetch(size_t i) const {
    if (i >= stops_.size()) return;
    for (const char* const line : stops_[i].lines) __builtin_prefetch(line);
  }

  std::vector<Stop> stops_;
  size_t here_ = 0;
  bool is_known_ = false;
};

}  // namespace sparse_ft
