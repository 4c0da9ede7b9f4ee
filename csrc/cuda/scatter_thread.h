// What one thread of the scatter_selected_ launch does. Shared by host and device.
#pragma once

#include "../cpu/ops.h"
#include "gather_thread.h"

namespace sparse_ft {

template <class Matrix, int N, class Values>
SFT_HD Pack<Matrix, N> add_packs(const Pack<Matrix, N>& held, const Pack<Values, N>& pack) {
  using T = typename Compute<Matrix, Values>::type;
  Pack<Matrix, N> sum;
  SFT_UNROLL
  for (int i = 0; i < N; ++i) sum.x[i] = convert(convert(held.x[i], Tag<T>()) + convert(pack.x[i], Tag<T>()), Tag<Matrix>());
  return sum;
}

template <int N, class T>
SFT_HD void put_pack(T* matrix, const Places<N>& places, const Pack<T, N>& pack) {
  if (adjoining(places)) return store_pack(matrix + places.at[0], pack, N);
  SFT_UNROLL
  for (int i = 0; i < N; ++i)
    if (places.at[i] != kPadding) store(matrix + places.at[i], pack.x[i]);
}

// What a swap brings back from the matrix; the padding of values stays as it is.
template <class Values, int N, class Matrix>
SFT_HD void bring_back(Values* values, const Places<N>& places, const Pack<Matrix, N>& held) {
  const Pack<Values, N> pack = convert_pack<Values>(held);
  if (adjoining(places)) return store_pack(values, pack, N);
  SFT_UNROLL
  for (int i = 0; i < N; ++i)
    if (places.at[i] != kPadding) store(values + i, pack.x[i]);
}

// Packs as in gather_thread, so as many blocks.
template <class Matrix, class Values>
SFT_HD void scatter_thread(Matrix* matrix, const Layout& layout, Values* values, int64_t count, ScatterMode mode, int64_t blocks,
                           int64_t block, int64_t thread) {
  constexpr int N = kGatherPack<Matrix, Values>;
  for (int64_t k = (block * kGatherThreads + thread) * N; k < count; k += blocks * kGatherThreads * N) {
    const Places<N> places = find_places<N>(layout, k, count - k);
    const Pack<Values, N> pack = load_pack<N>(values + k, count - k);
    if (mode == kCopy) {
      put_pack(matrix, places, convert_pack<Matrix>(pack));
    } else {
      const Pack<Matrix, N> held = gather_pack(static_cast<const Matrix*>(matrix), places);
      put_pack(matrix, places, mode == kAdd ? add_packs(held, pack) : convert_pack<Matrix>(pack));
      if (mode == kSwap) bring_back(values + k, places, held);  // both have one dtype, so nothing is rounded
    }
  }
}

}  // namespace sparse_ft
