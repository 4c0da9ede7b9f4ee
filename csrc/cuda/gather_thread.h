// What one thread of the gather_selected launch does. Shared by host and device.
#pragma once

#include "pack.h"

namespace sparse_ft {

constexpr int kGatherThreads = 256;
constexpr int64_t kGatherMaxBlocks = 65536;  // the threads stride over the rest

// 16 bytes of the wider side: what is adjoining (rows, most of a block) streams; elsewhere as many loads are in flight.
template <class Matrix, class Values>
constexpr int kGatherPack = 16 / static_cast<int>(sizeof(Matrix) > sizeof(Values) ? sizeof(Matrix) : sizeof(Values));

template <class Matrix, class Values>
SFT_HD int64_t gather_blocks(int64_t count) {
  const int64_t per_block = kGatherThreads * kGatherPack<Matrix, Values>;
  const int64_t needed = (count + per_block - 1) / per_block;
  return needed < kGatherMaxBlocks ? needed : kGatherMaxBlocks;
}

template <class Matrix, class Values>
SFT_HD void gather_thread(const Matrix* matrix, const Layout& layout, Values* values, int64_t count, int64_t blocks, int64_t block,
                          int64_t thread) {
  constexpr int N = kGatherPack<Matrix, Values>;
  for (int64_t k = (block * kGatherThreads + thread) * N; k < count; k += blocks * kGatherThreads * N) {
    const Places<N> places = find_places<N>(layout, k, count - k);
    store_pack(values + k, convert_pack<Values>(gather_pack(matrix, places)), count - k);
  }
}

}  // namespace sparse_ft
