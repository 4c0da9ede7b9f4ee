// Entries that one thread moves together, 16 bytes at a time where they lie so. Shared by host and device: tests run every thread of a
// launch on the CPU and count the writes.
#pragma once

#include "../layout.h"

#ifndef SFT_ON_WRITE  // what a test on the CPU does at each write
#define SFT_ON_WRITE(address, bytes)
#endif

#ifdef __CUDACC__
#define SFT_UNROLL _Pragma("unroll")  // what is indexed by a loop stays in registers
#else
#define SFT_UNROLL
#endif

namespace sparse_ft {

// What one instruction moves.
#ifdef __CUDACC__
using Word16 = uint4;
using Word8 = uint2;
#else
struct alignas(16) Word16 {
  uint64_t bits[2];
};
using Word8 = uint64_t;
#endif

template <int Bytes>
struct WordOf {
  using type = Word16;
};
template <>
struct WordOf<8> {
  using type = Word8;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<1> {
  using type = uint8_t;
};

// By name, as a compiler cannot tell that a pointer is global if it came out of shared memory; each is used once, so caches may drop it.
template <class Word>
SFT_HD Word load_global(const Word* from) {
#ifdef __CUDA_ARCH__
  return __ldcs(from);
#else
  return *from;
#endif
}

template <class Word>
SFT_HD void store_global(Word* to, Word word) {
#ifdef __CUDA_ARCH__
  __stcs(to, word);
#else
  *to = word;
#endif
}

template <class T, int N>
struct Pack {
  using Word = typename WordOf<N * sizeof(T)>::type;  // of 16 bytes, one or more
  static constexpr int kWords = N * sizeof(T) / sizeof(Word);
  T x[N];
};

template <class T, int N>
SFT_HD bool aligned(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % sizeof(typename Pack<T, N>::Word) == 0;
}

template <int N, class T>
SFT_HD Pack<T, N> load_whole(const T* from) {
  using Word = typename Pack<T, N>::Word;
  Word words[Pack<T, N>::kWords];
  SFT_UNROLL
  for (int i = 0; i < Pack<T, N>::kWords; ++i) words[i] = load_global(reinterpret_cast<const Word*>(from) + i);
  Pack<T, N> pack;
  memcpy(&pack, words, sizeof words);
  return pack;
}

template <int N, class T>
SFT_HD void store_whole(T* to, const Pack<T, N>& pack) {
  using Word = typename Pack<T, N>::Word;
  Word words[Pack<T, N>::kWords];
  memcpy(words, &pack, sizeof words);
  SFT_ON_WRITE(to, sizeof words);
  SFT_UNROLL
  for (int i = 0; i < Pack<T, N>::kWords; ++i) store_global(reinterpret_cast<Word*>(to) + i, words[i]);
}

template <class T>
SFT_HD T load(const T* from) {
  return load_whole<1>(from).x[0];
}

template <class T>
SFT_HD void store(T* to, T x) {
  store_whole(to, Pack<T, 1>{{x}});
}

// left: entries that remain from here on; those past the end are zero.
template <int N, class T>
SFT_HD Pack<T, N> load_pack(const T* from, int64_t left) {
  if (left >= N && aligned<T, N>(from)) return load_whole<N>(from);
  Pack<T, N> pack;
  SFT_UNROLL
  for (int i = 0; i < N; ++i) pack.x[i] = i < left ? load(from + i) : T{};
  return pack;
}

template <int N, class T>
SFT_HD void store_pack(T* to, const Pack<T, N>& pack, int64_t left) {
  if (left >= N && aligned<T, N>(to)) return store_whole(to, pack);
  SFT_UNROLL
  for (int i = 0; i < N; ++i)
    if (i < left) store(to + i, pack.x[i]);
}

template <class To, int N, class From>
SFT_HD Pack<To, N> convert_pack(const Pack<From, N>& from) {
  Pack<To, N> to;
  SFT_UNROLL
  for (int i = 0; i < N; ++i) to.x[i] = convert(from.x[i], Tag<To>());
  return to;
}

// Where entries k, k + 1, … of values sit in the matrix; kPadding also for those past the end.
template <int N>
struct Places {
  int64_t at[N];
};

template <int N, class Index>
SFT_HD Places<N> listed_places(const Index* index, int64_t left) {
  const Pack<Index, N> listed = load_pack<N>(index, left);
  Places<N> places;
  SFT_UNROLL
  for (int i = 0; i < N; ++i) places.at[i] = i < left ? static_cast<int64_t>(listed.x[i]) : kPadding;
  return places;
}

template <int N>
SFT_HD Places<N> find_places(const Layout& layout, int64_t k, int64_t left) {
  if (is_listed(layout.kind))
    return layout.index_bits == 64 ? listed_places<N>(static_cast<const int64_t*>(layout.index) + k, left)
                                   : listed_places<N>(static_cast<const int32_t*>(layout.index) + k, left);
  Places<N> places;
  Cursor cursor = cursor_at(layout, k);
  SFT_UNROLL
  for (int i = 0; i < N; ++i) {
    if (i && i < left) advance(layout, cursor);
    places.at[i] = i < left ? position(layout, cursor) : kPadding;
  }
  return places;
}

template <int N>
SFT_HD bool adjoining(const Places<N>& places) {
  bool all = places.at[0] != kPadding;
  SFT_UNROLL
  for (int i = 1; i < N; ++i) all &= places.at[i] == places.at[0] + i;
  return all;
}

template <int N, class T>
SFT_HD Pack<T, N> gather_pack(const T* matrix, const Places<N>& places) {
  if (adjoining(places)) return load_pack<N>(matrix + places.at[0], N);
  Pack<T, N> pack;
  SFT_UNROLL
  for (int i = 0; i < N; ++i) pack.x[i] = places.at[i] == kPadding ? T{} : load(matrix + places.at[i]);
  return pack;
}

// left: entries that remain from k on.
template <int N, class T>
SFT_HD void scatter_pack(T* matrix, const Layout& layout, int64_t k, int64_t left, const Pack<T, N>& pack) {
  Cursor cursor = cursor_at(layout, k);
  if (left >= N && in_one_run(layout, cursor, N)) return store_pack(matrix + position(layout, cursor), pack, N);
  SFT_UNROLL
  for (int i = 0; i < N; ++i) {
    if (i && i < left) advance(layout, cursor);
    const int64_t at = i < left ? position(layout, cursor) : kPadding;
    if (at != kPadding) store(matrix + at, pack.x[i]);
  }
}

}  // namespace sparse_ft
