// Scratch memory of one call, in 64-byte lines, and how sums kept there reach values.
#pragma once

#include <cstdlib>
#include <new>

#include "../dtype.h"

namespace sparse_ft {
namespace {

constexpr int64_t kLine = 64;

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Hands out pieces of a buffer, each on a line of its own.
class Pieces {
 public:
  explicit Pieces(char* data) : data_(data) {}
  template <class T>
  T* cut(int64_t count) {
    T* piece = reinterpret_cast<T*>(data_);
    data_ += bytes<T>(count);
    return piece;
  }
  template <class T>
  static constexpr int64_t bytes(int64_t count) { return round_up(count * static_cast<int64_t>(sizeof(T)), kLine); }

 private:
  char* data_;
};

class Workspace {
 public:
  explicit Workspace(int64_t bytes) : data_(aligned_alloc(kLine, round_up(bytes + 1, kLine))) {
    if (!data_) throw std::bad_alloc();
  }
  ~Workspace() { free(data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  Pieces pieces() const { return Pieces(static_cast<char*>(data_)); }

 private:
  void* data_;
};

template <class T>
bool is_dtype(DType dtype) {
  return dtype == (sizeof(T) == sizeof(double) ? kFloat64 : kFloat32);
}

// Adds to what is there in the precision of the sum, and rounds once.
template <class Values, class T>
void store_sum(Values& value, T sum, bool accumulate) {
  using C = typename Compute<T, Values>::type;
  value = accumulate ? convert(convert(value, Tag<C>()) + convert(sum, Tag<C>()), Tag<Values>()) : convert(sum, Tag<Values>());
}

template <class T>
void store_sums(const T* sums, int64_t count, void* values, DType values_dtype, bool accumulate) {
  with_dtype(values_dtype, [&](auto v) {
    for (int64_t k = 0; k < count; ++k) store_sum(static_cast<decltype(v)*>(values)[k], sums[k], accumulate);
  });
}

}  // namespace
}  // namespace sparse_ft
