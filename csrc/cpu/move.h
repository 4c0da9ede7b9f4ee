// Moves entries [begin, end) of values between the matrix and a buffer that holds them one after another. Only the size of an element
// matters here; what changes dtype passes through a small buffer and `convert_any`, so that few loops serve every pair of dtypes.
#pragma once

#include "convert.h"
#include "parallel.h"
#include "../layout.h"

namespace sparse_ft {
namespace {

constexpr int64_t kPiece = 512;  // entries: a few buffers of them stay in the first-level cache
constexpr int64_t kLooked = 16;  // entries whose places are looked at together, in vectors: 1 to 3 % of a gather or scatter
constexpr int64_t kPrefetchDistance = 16;  // entries ahead: a random cache line takes about as long as 16 scalar stores

constexpr int64_t size_of(DType dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

union Piece {  // of any dtype
  char bytes[8 * kPiece];
  float floats[kPiece];
  double doubles[kPiece];
};

struct Load {
  static constexpr bool kWritesMatrix = false, kFillsPadding = true;
  template <class Bits>
  static void apply(Bits& matrix, Bits& value) { value = matrix; }
};
struct Store {
  static constexpr bool kWritesMatrix = true, kFillsPadding = false;
  template <class Bits>
  static void apply(Bits& matrix, Bits& value) { matrix = value; }
};
struct Exchange {
  static constexpr bool kWritesMatrix = true, kFillsPadding = false;
  template <class Bits>
  static void apply(Bits& matrix, Bits& value) {
    const Bits held = matrix;
    matrix = value;
    value = held;
  }
};

template <class Action, class Bits>
struct Mover {
  Bits* matrix;  // [rows, columns]
  Bits* buffer;  // [end - first]
  int64_t first;
  int64_t size;         // of the matrix
  bool inside = true;   // whether all entries were in the matrix: those that were not are left out

  void run(int64_t k, int64_t position, int64_t count) const {
    Bits* __restrict at = matrix + position;
    Bits* __restrict held = buffer + (k - first);
    for (int64_t i = 0; i < count; ++i) Action::apply(at[i], held[i]);
  }

  template <class Index>
  void indexed(int64_t k, int64_t base, const Index* index, int64_t count) const {
    Bits* at = matrix + base;
    Bits* held = buffer + (k - first);
    const int64_t ahead = larger(count - kPrefetchDistance, 0);
    int64_t i = 0;
    for (; i < ahead; ++i) {
      __builtin_prefetch(at + index[i + kPrefetchDistance], Action::kWritesMatrix);
      Action::apply(at[index[i]], held[i]);
    }
    for (; i < count; ++i) Action::apply(at[index[i]], held[i]);
  }

  template <class Index>
  void entries(int64_t k, int64_t first_position, const Index* index, int64_t count) {
    Bits* at = matrix - first_position;
    Bits* held = buffer + (k - first);
    int64_t i = 0;
    for (; i + kLooked + kPrefetchDistance <= count; i += kLooked) {
      if (!all_inside(index + i, kLooked, first_position, size)) {
        each_inside(at, first_position, index + i, kLooked, held + i);
        continue;
      }
#pragma GCC unroll 16
      for (int64_t j = i; j < i + kLooked; ++j) {
        __builtin_prefetch(at + index[j + kPrefetchDistance], Action::kWritesMatrix);
        Action::apply(at[index[j]], held[j]);
      }
    }
    each_inside(at, first_position, index + i, count - i, held + i);
  }

  template <class Index>
  void each_inside(Bits* at, int64_t first_position, const Index* index, int64_t count, Bits* held) {
    for (int64_t i = 0; i < count; ++i) {
      if (all_inside(index + i, 1, first_position, size)) Action::apply(at[index[i]], held[i]);
      else inside = false;
    }
  }

  void soon(int64_t position, int64_t count) const {
    constexpr int64_t kLine = 64 / sizeof(Bits), kMost = 8 * kLine;  // what follows in a longer run the hardware finds
    const char* at = reinterpret_cast<const char*>(matrix);
    asm volatile("");  // GCC drops calls of a function that does nothing but prefetch
    for (int64_t i = 0; i < smaller(count, kMost); i += kLine)
      __builtin_prefetch(at + (position + i) * sizeof(Bits), Action::kWritesMatrix);
  }

  void padding(int64_t k, int64_t count) const {
    for (int64_t i = 0; Action::kFillsPadding && i < count; ++i) buffer[k - first + i] = 0;
  }
};

// False where an index names entries that the matrix has not. They are left out.
template <class Action>
bool move(void* matrix, DType dtype, const Layout& layout, int64_t begin, int64_t end, void* buffer) {
  const auto as = [&](auto bits) {
    using Bits = decltype(bits);
    Mover<Action, Bits> mover{static_cast<Bits*>(matrix), static_cast<Bits*>(buffer), begin, layout.rows * layout.columns};
    walk(layout, begin, end, mover);
    return mover.inside;
  };
  switch (size_of(dtype)) {
    case 2: return as(uint16_t());
    case 4: return as(uint32_t());
    default: return as(uint64_t());
  }
}

inline void convert_any(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count) {
  with_dtype(to_dtype, [&](auto t) {
    with_dtype(from_dtype, [&](auto f) {
      convert_run(static_cast<decltype(t)*>(to), static_cast<const decltype(f)*>(from), count);
    });
  });
}

// Calls f(begin, end) for pieces of [begin, end).
template <class F>
void for_each_piece(int64_t begin, int64_t end, F&& f) {
  for (int64_t k = begin; k < end; k += kPiece) f(k, smaller(k + kPiece, end));
}

// `all` says whether it holds for each of the team.
inline void keep(bool& all, bool holds) {
  if (!holds) __atomic_store_n(&all, false, __ATOMIC_RELAXED);
}

// Threads that the move of all values deserves, from the nanoseconds that an entry takes at least: in the cache.
inline int movers(const Layout& layout, int threads) {
  return team_for(values_count(layout) * (is_scattered(layout.kind) ? 1.0 : 0.25), threads);
}

// Calls f(begin, end) for chunks of [0, count), shared between the threads.
template <class F>
void for_each_chunk(int64_t count, int threads, F&& f) {
  constexpr int64_t kChunk = 16384;  // entries: some 10 µs of work, as much as waking a thread costs
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  int64_t next = 0;
  parallel(static_cast<int>(smaller(threads, chunks)), [&](int, int) {
    for (int64_t chunk; (chunk = take(next)) < chunks;) f(chunk * kChunk, smaller((chunk + 1) * kChunk, count));
  });
}

}  // namespace
}  // namespace sparse_ft
