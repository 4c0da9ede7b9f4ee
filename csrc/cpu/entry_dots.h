// values[k] = sum over tokens of grad_output[t, row(k)] * input[t, column(k)] for single entries.
// The rows and columns that are needed are packed token-innermost, a chunk of tokens at a time; every entry is then a dot product
// of two contiguous runs, as many entries together as a vector has lanes. The team packs a chunk together, waits, and shares out
// the entries; each entry is summed by one thread, its tokens in order.
#pragma once

#include "convert.h"
#include "ops.h"
#include "phases.h"
#include "simd.h"
#include "used.h"
#include "walk.h"
#include "workspace.h"

namespace sparse_ft {
namespace {

constexpr int64_t kRunTokens = 64;            // tokens of one contiguous run
constexpr int64_t kPackedBytes = 4 << 20;    // of both packed operands, unless one run alone needs more
constexpr int64_t kPackColumns = 64;          // a unit of packing work
constexpr int64_t kEntriesPerUnit = 16384;    // of dot products, at most: their slots stay in the second-level cache

// Calls f(k, row, column) for entries [begin, end). Sorted entries cost a division only where the row changes.
template <class F>
void for_each_entry(const Layout& layout, int64_t begin, int64_t end, F&& f) {
  int64_t row = 0, row_begin = 0;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t entry = index_at(layout, k);
    if (entry < row_begin || entry >= row_begin + layout.columns) {
      row = entry / layout.columns;
      row_begin = row * layout.columns;
    }
    f(k, row, entry - row_begin);
  }
}

// packed [slots, kRunTokens] = source [tokens, …] at the columns of slots [begin, end), transposed; zero past the last token.
// A few tokens at a time: source rows that lie a power of two apart share the lines of a cache set.
template <class T, class Source>
void pack_transposed(const Source* source, int64_t stride, int64_t tokens, const Used& used, int64_t begin, int64_t end, T* packed) {
  constexpr int lanes = kLanes<T>;
  for (int64_t t0 = 0; t0 < kRunTokens; t0 += lanes)
    for (int64_t u = begin; u < end; u += lanes) {
      const int count = static_cast<int>(smaller(lanes, end - u)), valid = static_cast<int>(smaller(lanes, tokens - t0));
      const int32_t* columns = used.column + u;
      const bool contiguous = count == lanes && columns[lanes - 1] == columns[0] + lanes - 1;
      Vec<T> rows[lanes] = {};
      for (int t = 0; t < valid; ++t) {
        const Source* from = source + (t0 + t) * stride;
        T line[lanes];
        if (contiguous)
          convert_run(line, from + columns[0], lanes);
        else
          for (int i = 0; i < lanes; ++i) line[i] = convert(from[columns[i < count ? i : 0]], Tag<T>());
        rows[t] = load(line);
      }
      transpose<T>(rows);
      for (int i = 0; i < count; ++i) store(packed + (u + i) * kRunTokens + t0, rows[i]);
    }
}

template <class T>
void pack_transposed(const void* source, DType dtype, int64_t stride, int64_t first_token, int64_t tokens, const Used& used,
                     int64_t begin, int64_t end, T* packed) {
  with_dtype(dtype, [&](auto s) {
    using Source = decltype(s);
    if constexpr ((sizeof(Source) == sizeof(double)) == (sizeof(T) == sizeof(double)))
      pack_transposed(static_cast<const Source*>(source) + first_token * stride, stride, tokens, used, begin, end, packed);
  });
}

// Adds the dot products of the `count` entries whose packed runs start at a[i] and b[i]. Entries of one row share the loads of a.
// Four vectors of tokens a turn: there are more runs than registers for their addresses.
// Not inlined: with both kinds in one function the loads of both are kept, and spilled.
template <bool OneRow, class T>
__attribute__((noinline)) void add_dots(const T* const (&a)[kLanes<T>], const T* const (&b)[kLanes<T>], T* sums, int count) {
  constexpr int lanes = kLanes<T>, unroll = 4;
  Vec<T> sum[lanes] = {};
  for (int64_t t = 0; t < kRunTokens; t += unroll * lanes) {
    Vec<T> shared[unroll];
    for (int u = 0; u < unroll; ++u) shared[u] = load(a[0] + t + u * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
#pragma GCC unroll 4
      for (int u = 0; u < unroll; ++u)
        sum[i] += (OneRow ? shared[u] : load(a[i] + t + u * lanes)) * load(b[i] + t + u * lanes);
    }
  }
  const Vec<T> dots = sum_lanes<T>(sum);
  if (count == lanes) return store(sums, load(sums) + dots);
  for (int i = 0; i < count; ++i) sums[i] += dots[i];
}

template <class T>
struct EntryProblem {
  WgradOperands operands;
  const Layout& layout;
  Used rows, columns;
  T *packed_rows, *packed_columns;  // [runs, used, kRunTokens]
  T* sums;                          // [nnz]

  // Packing is cut into units: for each run of a chunk, some columns of one operand.
  int64_t row_units() const { return divide_up(rows.count, kPackColumns); }
  int64_t units_per_run() const { return row_units() + divide_up(columns.count, kPackColumns); }

  void pack_unit(int64_t unit, int64_t first_token) const {
    const int64_t run = unit / units_per_run(), within = unit % units_per_run();
    const int64_t token = first_token + run * kRunTokens, tokens = smaller(kRunTokens, operands.tokens - token);
    const bool of_rows = within < row_units();
    const Used& used = of_rows ? rows : columns;
    const int64_t begin = (of_rows ? within : within - row_units()) * kPackColumns, end = smaller(begin + kPackColumns, used.count);
    T* packed = (of_rows ? packed_rows : packed_columns) + run * used.count * kRunTokens;
    pack_transposed(of_rows ? operands.grad_output : operands.input, operands.dtype,
                    of_rows ? operands.grad_output_stride : operands.input_stride, token, tokens, used, begin, end, packed);
  }

  // `slots` has room for two numbers an entry.
  void add_entries(int64_t begin, int64_t end, int64_t runs, int32_t* slots) const {
    constexpr int lanes = kLanes<T>;
    int32_t *row_slots = slots, *column_slots = slots + kEntriesPerUnit;
    for_each_entry(layout, begin, end, [&](int64_t k, int64_t row, int64_t column) {
      row_slots[k - begin] = rows.slot[row];
      column_slots[k - begin] = columns.slot[column];
    });
    for (int64_t run = 0; run < runs; ++run) {
      const T* run_rows = packed_rows + run * rows.count * kRunTokens;
      const T* run_columns = packed_columns + run * columns.count * kRunTokens;
      for (int64_t k = 0; k < end - begin; k += lanes) {
        const int count = static_cast<int>(smaller(lanes, end - begin - k));
        const T *a[lanes], *b[lanes];
        int32_t differ = 0;
        for (int i = 0; i < lanes; ++i) {
          const int64_t at = k + (i < count ? i : 0);
          a[i] = run_rows + row_slots[at] * kRunTokens;
          b[i] = run_columns + column_slots[at] * kRunTokens;
          differ |= row_slots[at] ^ row_slots[k];
        }
        differ ? add_dots<false>(a, b, sums + begin + k, count) : add_dots<true>(a, b, sums + begin + k, count);
      }
    }
  }
};

template <class T>
void entry_dots(const WgradOperands& operands, const Layout& layout, void* values, DType values_dtype, bool accumulate, int threads) {
  const int64_t nnz = layout.n;
  const bool in_values = is_dtype<T>(values_dtype);
  const Workspace maps(Used::bytes(layout.rows) + Used::bytes(layout.columns) + (in_values ? 0 : Pieces::bytes<T>(nnz)));
  Pieces from = maps.pieces();
  EntryProblem<T> problem{operands, layout, Used(from, layout.rows), Used(from, layout.columns), nullptr, nullptr, nullptr};
  problem.sums = in_values ? static_cast<T*>(values) : from.cut<T>(nnz);
  for_each_entry(layout, 0, nnz, [&](int64_t, int64_t row, int64_t column) {
    problem.rows.mark(row);
    problem.columns.mark(column);
  });
  problem.rows.collect(layout.rows);
  problem.columns.collect(layout.columns);
  if (!in_values || !accumulate) memset(problem.sums, 0, nnz * sizeof(T));

  const int64_t run_elements = (problem.rows.count + problem.columns.count) * kRunTokens;
  const int64_t all_runs = divide_up(operands.tokens, kRunTokens);
  const int64_t chunk_runs = larger(1, smaller(all_runs, kPackedBytes / (run_elements * static_cast<int64_t>(sizeof(T)))));
  const Workspace packed(chunk_runs * run_elements * static_cast<int64_t>(sizeof(T)));
  problem.packed_rows = packed.pieces().template cut<T>(0);
  problem.packed_columns = problem.packed_rows + chunk_runs * problem.rows.count * kRunTokens;

  const int64_t unit = smaller(kEntriesPerUnit, round_up(divide_up(nnz, 4 * threads), kLanes<T>));
  const Workspace slots(threads * Pieces::bytes<int32_t>(2 * kEntriesPerUnit));
  int32_t* all_slots = slots.pieces().cut<int32_t>(0);
  in_phases(all_runs, chunk_runs, threads, [&](int64_t first, int64_t runs, const Phase& pack, const Phase& add, int thread) {
    pack.share(runs * problem.units_per_run(), [&](int64_t i) { problem.pack_unit(i, first * kRunTokens); });
    add.share(divide_up(nnz, unit), [&](int64_t i) {
      problem.add_entries(i * unit, smaller((i + 1) * unit, nnz), runs, all_slots + thread * 2 * kEntriesPerUnit);
    });
  });
  if (!in_values) store_sums(problem.sums, nnz, values, values_dtype, accumulate);
}

}  // namespace
}  // namespace sparse_ft
