// values[k] = sum over tokens of grad_output[t, row(k)] * input[t, column(k)] for single entries.
// The rows and columns that are needed are packed token-innermost, a chunk of tokens at a time; every entry is then a dot product
// of two contiguous runs, as many entries together as a vector has lanes. The team packs a chunk together, waits, and shares out
// the entries; each entry is summed by one thread, its tokens in order.
#pragma once

#include "convert.h"
#include "ops.h"
#include "parallel.h"
#include "simd.h"
#include "walk.h"
#include "workspace.h"

namespace sparse_ft {
namespace {

constexpr int64_t kRunTokens = 64;            // tokens of one contiguous run
constexpr int64_t kPackedBytes = 16 << 20;    // of both packed operands, unless one run alone needs more
constexpr int64_t kPackColumns = 64;          // a unit of packing work
constexpr int64_t kEntriesPerUnit = 4096;     // a unit of dot products, at least

// The lines of one operand that some entry needs.
struct UsedColumns {
  int32_t* slot;    // [size] column -> where it is packed
  int32_t* column;  // [count] the reverse
  int64_t count;

  void collect(int64_t size) {
    count = 0;
    for (int64_t c = 0; c < size; ++c) {
      if (slot[c] < 0) continue;
      slot[c] = static_cast<int32_t>(count);
      column[count++] = static_cast<int32_t>(c);
    }
  }
};

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
template <class T, class Source>
void pack_transposed(const Source* source, int64_t stride, int64_t tokens, const UsedColumns& used, int64_t begin, int64_t end, T* packed) {
  constexpr int lanes = kLanes<T>;
  for (int64_t u = begin; u < end; u += lanes) {
    const int count = static_cast<int>(smaller(lanes, end - u));
    const int32_t* columns = used.column + u;
    const bool contiguous = count == lanes && columns[lanes - 1] == columns[0] + lanes - 1;
    for (int64_t t0 = 0; t0 < kRunTokens; t0 += lanes) {
      Vec<T> rows[lanes];
      for (int t = 0; t < lanes; ++t) {
        T line[lanes] = {};
        if (t0 + t < tokens) {
          const Source* from = source + (t0 + t) * stride;
          if (contiguous)
            convert_run(line, from + columns[0], lanes);
          else
            for (int i = 0; i < count; ++i) line[i] = convert(from[columns[i]], Tag<T>());
        }
        rows[t] = load(line);
      }
      transpose<T>(rows);
      for (int i = 0; i < count; ++i) store(packed + (u + i) * kRunTokens + t0, rows[i]);
    }
  }
}

template <class T>
void pack_transposed(const void* source, DType dtype, int64_t stride, int64_t first_token, int64_t tokens, const UsedColumns& used,
                     int64_t begin, int64_t end, T* packed) {
  with_dtype(dtype, [&](auto s) {
    using Source = decltype(s);
    if constexpr ((sizeof(Source) == sizeof(double)) == (sizeof(T) == sizeof(double)))
      pack_transposed(static_cast<const Source*>(source) + first_token * stride, stride, tokens, used, begin, end, packed);
  });
}

// Adds the dot products of `lanes` entries to sums. Entries of one row share the loads of a.
template <class T>
void add_dots(const T* const (&a)[kLanes<T>], const T* const (&b)[kLanes<T>], bool one_row, T* sums, int count) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[lanes] = {};
  if (one_row) {
    const T* shared = a[0];
    for (int64_t t = 0; t < kRunTokens; t += lanes) {
      const Vec<T> at = load(shared + t);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) sum[i] += at * load(b[i] + t);
    }
  } else {
    for (int64_t t = 0; t < kRunTokens; t += lanes)
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) sum[i] += load(a[i] + t) * load(b[i] + t);
  }
  const Vec<T> dots = sum_lanes<T>(sum);
  if (count == lanes) return store(sums, load(sums) + dots);
  for (int i = 0; i < count; ++i) sums[i] += dots[i];
}

template <class T>
struct EntryProblem {
  WgradOperands operands;
  const Layout& layout;
  UsedColumns rows, columns;
  T *packed_rows, *packed_columns;  // [runs, used, kRunTokens]
  T* sums;                          // [nnz]

  // Packing is cut into units: for each run of a chunk, some columns of one operand.
  int64_t row_units() const { return divide_up(rows.count, kPackColumns); }
  int64_t units_per_run() const { return row_units() + divide_up(columns.count, kPackColumns); }

  void pack_unit(int64_t unit, int64_t first_token) const {
    const int64_t run = unit / units_per_run(), within = unit % units_per_run();
    const int64_t token = first_token + run * kRunTokens, tokens = smaller(kRunTokens, operands.tokens - token);
    const bool of_rows = within < row_units();
    const UsedColumns& used = of_rows ? rows : columns;
    const int64_t begin = (of_rows ? within : within - row_units()) * kPackColumns, end = smaller(begin + kPackColumns, used.count);
    T* packed = (of_rows ? packed_rows : packed_columns) + run * used.count * kRunTokens;
    pack_transposed(of_rows ? operands.grad_output : operands.input, operands.dtype,
                    of_rows ? operands.grad_output_stride : operands.input_stride, token, tokens, used, begin, end, packed);
  }

  void add_entries(int64_t begin, int64_t end, int64_t runs) const {
    constexpr int lanes = kLanes<T>;
    for (int64_t run = 0; run < runs; ++run) {
      const T* run_rows = packed_rows + run * rows.count * kRunTokens;
      const T* run_columns = packed_columns + run * columns.count * kRunTokens;
      const T *a[lanes], *b[lanes];
      int filled = 0;
      for_each_entry(layout, begin, end, [&](int64_t k, int64_t row, int64_t column) {
        a[filled] = run_rows + rows.slot[row] * kRunTokens;
        b[filled] = run_columns + columns.slot[column] * kRunTokens;
        if (++filled < lanes && k + 1 < end) return;
        const int count = filled;
        for (; filled < lanes; ++filled) a[filled] = a[count - 1], b[filled] = b[count - 1];
        bool one_row = true;
        for (int i = 1; i < lanes; ++i) one_row &= a[i] == a[0];
        add_dots<T>(a, b, one_row, sums + k + 1 - count, count);
        filled = 0;
      });
    }
  }
};

template <class T>
void entry_dots(const WgradOperands& operands, const Layout& layout, void* values, DType values_dtype, bool accumulate, int threads) {
  const int64_t nnz = layout.n, in_values = sizeof(T) == (values_dtype == kFloat64 ? 8 : values_dtype == kFloat32 ? 4 : 0);
  const Workspace maps(2 * Pieces::bytes<int32_t>(layout.rows) + 2 * Pieces::bytes<int32_t>(layout.columns) +
                       (in_values ? 0 : Pieces::bytes<T>(nnz)));
  Pieces from = maps.pieces();
  EntryProblem<T> problem{operands, layout, {}, {}, nullptr, nullptr, nullptr};
  problem.rows = UsedColumns{from.cut<int32_t>(layout.rows), from.cut<int32_t>(layout.rows), 0};
  problem.columns = UsedColumns{from.cut<int32_t>(layout.columns), from.cut<int32_t>(layout.columns), 0};
  problem.sums = in_values ? static_cast<T*>(values) : from.cut<T>(nnz);
  memset(problem.rows.slot, 0xff, layout.rows * sizeof(int32_t));
  memset(problem.columns.slot, 0xff, layout.columns * sizeof(int32_t));
  for_each_entry(layout, 0, nnz, [&](int64_t, int64_t row, int64_t column) { problem.rows.slot[row] = problem.columns.slot[column] = 0; });
  problem.rows.collect(layout.rows);
  problem.columns.collect(layout.columns);
  if (!in_values || !accumulate) memset(problem.sums, 0, nnz * sizeof(T));

  const int64_t run_elements = (problem.rows.count + problem.columns.count) * kRunTokens;
  const int64_t all_runs = divide_up(operands.tokens, kRunTokens);
  const int64_t chunk_runs = larger(1, smaller(all_runs, kPackedBytes / (run_elements * static_cast<int64_t>(sizeof(T)))));
  const Workspace packed(chunk_runs * run_elements * static_cast<int64_t>(sizeof(T)));
  problem.packed_rows = packed.pieces().template cut<T>(0);
  problem.packed_columns = problem.packed_rows + chunk_runs * problem.rows.count * kRunTokens;

  const int64_t unit = round_up(larger(kEntriesPerUnit, divide_up(nnz, 4 * threads)), kLanes<T>);
  const int64_t phases = 2 * divide_up(all_runs, chunk_runs) + 1;
  const Workspace counters(Pieces::bytes<int64_t>(phases));
  int64_t* next = counters.pieces().cut<int64_t>(phases);
  memset(next, 0, phases * sizeof(int64_t));
  Barrier barrier;
  parallel(threads, [&](int, int team) {
    for (int64_t run = 0, phase = 0; run < all_runs; run += chunk_runs, phase += 2) {
      const int64_t runs = smaller(chunk_runs, all_runs - run);
      for (int64_t i; (i = take(next[phase])) < runs * problem.units_per_run();) problem.pack_unit(i, run * kRunTokens);
      wait_for_team(barrier, team);
      for (int64_t i; (i = take(next[phase + 1])) * unit < nnz;) problem.add_entries(i * unit, smaller((i + 1) * unit, nnz), runs);
      wait_for_team(barrier, team);
    }
  });
  if (in_values) return;
  with_dtype(values_dtype, [&](auto v) {
    for (int64_t k = 0; k < nnz; ++k) store_sum(static_cast<decltype(v)*>(values)[k], problem.sums[k], accumulate);
  });
}

}  // namespace
}  // namespace sparse_ft
