// values[k] = sum over tokens of grad_output[t, row(k)] * input[t, column(k)] for single entries.
// Rows and columns are packed token-innermost, a run of tokens at a time; every entry is then a dot product of two contiguous
// runs. The team packs the columns of some runs together, waits, and shares out the rows, which each thread packs for itself. Each
// entry is summed by one thread, its tokens in order.
#pragma once

#include "convert.h"
#include "entry_order.h"
#include "ops.h"
#include "phases.h"

namespace sparse_ft {
namespace {

// How tokens are cut into runs and columns into blocks. Few entries: short runs, so that all packed columns stay in the
// second-level cache. Many: a block stays in the first-level cache, or nearly, and long runs spread the cost of adding up lanes. At
// T = in = out = 2048 (AVX2) the two meet at 3 to 5 % of the entries; at 10 % the second is faster by a quarter.
struct EntryCut {
  int vectors;          // of tokens in a run
  int64_t block_bytes;  // of packed columns
  int64_t chunk_bytes;  // of packed columns between two waits, unless one run alone needs more
};
constexpr EntryCut kFewEntries{4, 256 << 10, 256 << 10};
constexpr EntryCut kManyEntries{8, 32 << 10, 4 << 20};
constexpr double kManyFrom = 0.04;    // share of the matrix
constexpr int64_t kUnitRows = 256;
constexpr int64_t kPackGroups = 128; // a unit of packing work
constexpr int64_t kPackAhead = 3;    // lines of the source to fetch early: 4.0 ms instead of 4.8 at 0.1 %
constexpr int kPartials = 128;       // entries whose lanes wait to be added up: 4 KiB (AVX2)

// columns[c] = source[0 … tokens - 1, c], for kLanes columns of which `width` exist; zero past the last token.
template <class T, class Source>
void load_square(const Source* source, int64_t stride, int64_t tokens, int64_t width, Vec<T> (&columns)[kLanes<T>]) {
  constexpr int64_t lanes = kLanes<T>;
  constexpr int64_t ahead = kPackAhead * kLine / static_cast<int64_t>(sizeof(Source));
  const int64_t valid = smaller(lanes, tokens);
  for (int64_t i = 0; i < valid; ++i) __builtin_prefetch(source + i * stride + ahead);
  if constexpr (sizeof(Source) == sizeof(T))
    if (tokens >= lanes && width >= lanes) return load_transposed<T>(source, stride, columns);
  T square[lanes * lanes] = {};
  for (int64_t i = 0; i < valid; ++i) {
    if (width >= lanes) convert_run(square + i * lanes, source + i * stride, lanes);  // a constant count, without a loop
    else convert_run(square + i * lanes, source + i * stride, width);
  }
  load_transposed<T>(square, lanes, columns);
}

// packed [groups, kLanes, run] = some groups of columns of source [tokens, size], transposed. Two by two squares together: a line
// of source and of packed is as wide as two.
template <class T, class Source>
void pack_groups(const Source* source, int64_t stride, int64_t size, int64_t tokens, int64_t run, const int32_t* groups,
                 int64_t count, T* packed) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t t2 = 0; t2 < run; t2 += 2 * lanes)
    for (int64_t g2 = 0; g2 < count; g2 += 2)
      for (int64_t t = t2; t < smaller(t2 + 2 * lanes, run); t += lanes)
        for (int64_t g = g2; g < smaller(g2 + 2, count); ++g) {
          const int64_t column = groups[g] * lanes;
          Vec<T> columns[lanes];
          load_square<T>(source + t * stride + column, stride, tokens - t, size - column, columns);
          for (int64_t i = 0; i < lanes; ++i) store(packed + (g * lanes + i) * run + t, columns[i]);
        }
}

struct EntryOperand {
  const void* data;  // [tokens, size]
  DType dtype;
  int64_t stride, size, tokens;

  template <class T>
  void pack(int64_t first_token, int64_t run, const Used& groups, int64_t begin, int64_t end, T* packed) const {
    with_dtype(dtype, [&](auto s) {
      using Source = decltype(s);
      if constexpr ((sizeof(Source) == sizeof(double)) == (sizeof(T) == sizeof(double)))
        pack_groups(static_cast<const Source*>(data) + first_token * stride, stride, size, tokens - first_token, run,
                    groups.column + begin, end - begin, packed + begin * kLanes<T> * run);
    });
  }
};

// Adds to the sums of the entries of one unit of rows [row_count, run] and one block of columns [slots, run].
template <int Vectors, class T>
void add_block(const T* rows, const int32_t* counts, int64_t row_count, const T* columns, const uint16_t* slots, T* sums) {
  constexpr int lanes = kLanes<T>, run = Vectors * lanes;
  alignas(64) T partials[kPartials * lanes];
  int waiting = 0;
  const auto add_lanes = [&] {
    for (int k = 0; k < waiting; k += lanes, sums += lanes) {
      Vec<T> sum[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) sum[i] = load(partials + (k + i) * lanes);
      store(sums, load(sums) + sum_lanes<T>(sum));
    }
    waiting = 0;
  };
  for (int64_t r = 0; r < row_count; ++r, rows += run) {
    Vec<T> row[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) row[v] = load(rows + v * lanes);
    for (const uint16_t* end = slots + counts[r]; slots < end; ++slots) {
      const T* column = columns + *slots * static_cast<int64_t>(run);
      Vec<T> sum[4];  // independent chains: one would wait for its own multiply-adds
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        const Vec<T> product = row[v] * load(column + v * lanes);
        sum[v % 4] = v < 4 ? product : sum[v % 4] + product;
      }
      store(partials + waiting * lanes, (sum[0] + sum[1]) + (sum[2] + sum[3]));
      if (++waiting == kPartials) add_lanes();
    }
  }
  add_lanes();
}

template <class T>
struct EntryProblem {
  static constexpr int64_t lanes = kLanes<T>;
  EntryOperand grad_output, input;
  const EntryOrder<kLanes<T>>& order;
  int64_t run;
  T* packed;  // [runs, column slots, run]
  T* sums;    // in that order

  int64_t run_units() const { return divide_up(order.columns.count, kPackGroups); }
  int64_t run_elements() const { return order.columns.count * lanes * run; }

  void pack_unit(int64_t unit, int64_t first_run) const {
    const int64_t which = unit / run_units(), begin = unit % run_units() * kPackGroups;
    input.pack((first_run + which) * run, run, order.columns, begin, smaller(begin + kPackGroups, order.columns.count),
               packed + which * run_elements());
  }

  template <int Vectors>
  void add_unit(int64_t unit, int64_t first_run, int64_t runs, T* packed_rows) const {
    const int64_t begin = unit * order.unit_rows, row_count = smaller(order.unit_rows, order.rows.count * lanes - begin);
    for (int64_t i = 0; i < runs; ++i) {
      grad_output.pack((first_run + i) * run, run, order.rows, begin / lanes, (begin + row_count) / lanes,
                       packed_rows - begin * run);
      for (int64_t block = 0; block < order.blocks; ++block) {
        const int64_t at = unit * order.blocks + block, start = order.starts[at];
        add_block<Vectors>(packed_rows, order.counts + at * order.unit_rows, row_count,
                           packed + i * run_elements() + block * order.block_columns * run, order.slots + start, sums + start);
      }
    }
  }
};

template <class T>
void entry_dots(const WgradOperands& operands, const Layout& layout, void* values, DType values_dtype, bool accumulate, int threads) {
  constexpr int lanes = kLanes<T>;
  const bool many = layout.n >= kManyFrom * layout.rows * layout.columns;
  const EntryCut cut = many ? kManyEntries : kFewEntries;
  const int64_t run = cut.vectors * lanes, run_bytes = cut.vectors * kVectorBytes;
  const int64_t unit_rows = smaller(kUnitRows, round_up(divide_up(layout.rows, 4 * threads), lanes));
  const Workspace maps(EntryOrder<lanes>::map_bytes(layout));
  Pieces map_pieces = maps.pieces();
  EntryOrder<lanes> order(layout, unit_rows, cut.block_bytes / run_bytes / lanes * lanes, map_pieces);
  const Workspace ordered(order.bytes());
  order.sort(ordered.pieces());

  const int64_t sum_count = order.starts[order.units * order.blocks];
  const int64_t column_bytes = order.columns.count * lanes * run_bytes;
  const int64_t all_runs = divide_up(operands.tokens, run), chunk = larger(1, smaller(all_runs, cut.chunk_bytes / column_bytes));
  const int64_t thread_elements = order.unit_rows * run;
  const Workspace workspace(Pieces::bytes<T>(sum_count) + chunk * column_bytes + threads * Pieces::bytes<T>(thread_elements));
  Pieces pieces = workspace.pieces();
  EntryProblem<T> problem{{operands.grad_output, operands.dtype, operands.grad_output_stride, layout.rows, operands.tokens},
                          {operands.input, operands.dtype, operands.input_stride, layout.columns, operands.tokens},
                          order, run, nullptr, nullptr};
  problem.sums = pieces.cut<T>(sum_count);
  problem.packed = pieces.cut<T>(chunk * column_bytes / static_cast<int64_t>(sizeof(T)));
  T* packed_rows = pieces.cut<T>(threads * thread_elements);
  memset(problem.sums, 0, sum_count * sizeof(T));

  in_phases(all_runs, chunk, threads, [&](int64_t first, int64_t runs, const Phase& pack, const Phase& add, int thread) {
    pack.share(runs * problem.run_units(), [&](int64_t i) { problem.pack_unit(i, first); });
    add.share(order.units, [&](int64_t unit) {
      T* mine = packed_rows + thread * thread_elements;
      many ? problem.template add_unit<kManyEntries.vectors>(unit, first, runs, mine)
           : problem.template add_unit<kFewEntries.vectors>(unit, first, runs, mine);
    });
  });
  with_dtype(values_dtype, [&](auto v) {
    order.for_each_place([&](int64_t k, int64_t at, int64_t) {
      store_sum(static_cast<decltype(v)*>(values)[k], problem.sums[at], accumulate);
    });
  });
}

}  // namespace
}  // namespace sparse_ft
