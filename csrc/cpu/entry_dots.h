// values[k] = sum over tokens of grad_output[t, row(k)] * input[t, column(k)] for single entries.
// Rows and columns are packed token-innermost, a run of tokens at a time; every entry is then a dot product of two contiguous
// runs. The team packs the columns of some runs together, waits, and shares out the rows, which each thread packs for itself. Each
// entry is summed by one thread, its tokens in order. So few entries that this is mostly waiting, and reading what another core has
// just written: tokens are cut into segments, the same for any team, and a thread packs all that its segment needs.
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
// Two threads, 0.1 %: 3.9 ms instead of 4.3, one thread the same. With sixteen segments at 1 % one thread takes a tenth longer: the
// sums of them all leave the second-level cache.
constexpr int64_t kSegmentEntries = 8192;  // and fewer: tokens in segments
constexpr int64_t kSegments = 8;
constexpr int64_t kUnitRows = 256;
constexpr int64_t kPackGroups = 128; // a unit of packing work
// Packed from as many tokens as a vector has lanes, then from the next: the lines of more tokens, 8 KiB apart, share one set of the
// first-level cache and push each other out. 4.05 ms instead of 4.4 at 0.1 %, 9.2 instead of 9.4 at 1 % (one thread).
constexpr int64_t kStripGroups = 16;
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

// packed [groups, kLanes, run] = some groups of columns of source [tokens, size], transposed. A line of source and of packed is as wide
// as two squares: some groups at a time, twice as many tokens as lanes, so that the lines of packed are still near when their second
// half comes.
template <class T, class Source>
void pack_groups(const Source* source, int64_t stride, int64_t size, int64_t tokens, int64_t run, const int32_t* groups,
                 int64_t count, T* packed) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t t2 = 0; t2 < run; t2 += 2 * lanes)
    for (int64_t begin = 0; begin < count; begin += kStripGroups)
      for (int64_t t = t2; t < smaller(t2 + 2 * lanes, run); t += lanes)
        for (int64_t g = begin; g < smaller(begin + kStripGroups, count); ++g) {
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

  int64_t run_units() const { return divide_up(order.columns.count, kPackGroups); }
  int64_t run_elements() const { return order.columns.count * lanes * run; }  // of packed columns
  int64_t runs() const { return divide_up(input.tokens, run); }
  int64_t unit_elements() const { return order.unit_rows * run; }  // of packed rows
  int64_t sum_count() const { return order.starts[order.units * order.blocks]; }

  // packed [column slots, run]
  void pack_unit(int64_t unit, int64_t which_run, T* packed) const {
    const int64_t begin = unit * kPackGroups;
    input.pack(which_run * run, run, order.columns, begin, smaller(begin + kPackGroups, order.columns.count), packed);
  }

  // packed [column slots, run]; packed_rows: scratch [unit_elements()]; sums in the order of the entries.
  template <int Vectors>
  void add_unit(int64_t unit, int64_t which_run, const T* packed, T* packed_rows, T* sums) const {
    const int64_t begin = unit * order.unit_rows, row_count = smaller(order.unit_rows, order.rows.count * lanes - begin);
    grad_output.pack(which_run * run, run, order.rows, begin / lanes, (begin + row_count) / lanes, packed_rows - begin * run);
    for (int64_t block = 0; block < order.blocks; ++block) {
      const int64_t at = unit * order.blocks + block, start = order.starts[at];
      add_block<Vectors>(packed_rows, order.counts + at * order.unit_rows, row_count, packed + block * order.block_columns * run,
                         order.slots + start, sums + start);
    }
  }

  template <class F>
  void store_each(void* values, DType values_dtype, bool accumulate, F&& sum_at) const {
    with_dtype(values_dtype, [&](auto v) {
      order.for_each_place([&](int64_t k, int64_t at, int64_t) {
        store_sum(static_cast<decltype(v)*>(values)[k], sum_at(at), accumulate);
      });
    });
  }
};

template <class T>
void dots_in_phases(const EntryProblem<T>& problem, const EntryCut& cut, void* values, DType values_dtype, bool accumulate, int threads) {
  const int64_t columns = problem.run_elements(), rows = problem.unit_elements(), sum_count = problem.sum_count();
  const int64_t chunk = larger(1, smaller(problem.runs(), cut.chunk_bytes / (columns * static_cast<int64_t>(sizeof(T)))));
  const Workspace workspace(Pieces::bytes<T>(sum_count) + Pieces::bytes<T>(chunk * columns) + Pieces::bytes<T>(threads * rows));
  Pieces pieces = workspace.pieces();
  T *sums = pieces.cut<T>(sum_count), *packed = pieces.cut<T>(chunk * columns), *packed_rows = pieces.cut<T>(threads * rows);
  memset(sums, 0, sum_count * sizeof(T));
  in_phases(problem.runs(), chunk, threads, [&](int64_t first, int64_t runs, const Phase& pack, const Phase& add, int thread) {
    const int64_t units = problem.run_units();
    pack.share(runs * units, [&](int64_t i) { problem.pack_unit(i % units, first + i / units, packed + i / units * columns); });
    add.share(problem.order.units, [&](int64_t unit) {
      T* mine = packed_rows + thread * rows;
      for (int64_t i = 0; i < runs; ++i)
        cut.vectors == kManyEntries.vectors
            ? problem.template add_unit<kManyEntries.vectors>(unit, first + i, packed + i * columns, mine, sums)
            : problem.template add_unit<kFewEntries.vectors>(unit, first + i, packed + i * columns, mine, sums);
    });
  });
  problem.store_each(values, values_dtype, accumulate, [&](int64_t at) { return sums[at]; });
}

// The cut of kFewEntries. Segments add to sums of their own, which are added up in the order of the segments.
template <class T>
void dots_in_segments(const EntryProblem<T>& problem, void* values, DType values_dtype, bool accumulate, int threads) {
  const auto& order = problem.order;
  const int64_t columns = problem.run_elements(), rows = problem.unit_elements(), sum_count = problem.sum_count();
  const int64_t segment_runs = divide_up(problem.runs(), kSegments), segments = divide_up(problem.runs(), segment_runs);
  // Of the rows of a segment, each summed by one thread: what a team does that is larger than there are segments.
  const int64_t parts = smaller(divide_up(threads, segments), order.units);
  const Workspace workspace(Pieces::bytes<T>(segments * sum_count) + Pieces::bytes<T>(threads * (columns + rows)));
  Pieces pieces = workspace.pieces();
  T *sums = pieces.cut<T>(segments * sum_count), *packed = pieces.cut<T>(threads * (columns + rows));
  memset(sums, 0, segments * sum_count * sizeof(T));
  int64_t next = 0;
  parallel(threads, [&](int thread, int) {
    T *mine = packed + thread * (columns + rows), *my_rows = mine + columns;
    for (int64_t i; (i = take(next)) < segments * parts;) {
      const int64_t segment = i / parts, part = i % parts, first = segment * segment_runs;
      for (int64_t which = first; which < smaller(first + segment_runs, problem.runs()); ++which) {
        for (int64_t unit = 0; unit < problem.run_units(); ++unit) problem.pack_unit(unit, which, mine);
        for (int64_t unit = part * order.units / parts; unit < (part + 1) * order.units / parts; ++unit)
          problem.template add_unit<kFewEntries.vectors>(unit, which, mine, my_rows, sums + segment * sum_count);
      }
    }
  });
  for (int64_t segment = 1; segment < segments; ++segment)
    for (int64_t at = 0; at < sum_count; ++at) sums[at] += sums[segment * sum_count + at];
  problem.store_each(values, values_dtype, accumulate, [&](int64_t at) { return sums[at]; });
}

template <class T>
void entry_dots(const WgradOperands& operands, const Layout& layout, void* values, DType values_dtype, bool accumulate, int threads) {
  constexpr int lanes = kLanes<T>;
  const bool many = layout.n >= kManyFrom * layout.rows * layout.columns;
  const EntryCut cut = many ? kManyEntries : kFewEntries;
  const int64_t run_bytes = cut.vectors * kVectorBytes;
  const int64_t unit_rows = smaller(kUnitRows, round_up(divide_up(layout.rows, 4 * threads), lanes));
  const Workspace maps(EntryOrder<lanes>::map_bytes(layout));
  Pieces map_pieces = maps.pieces();
  EntryOrder<lanes> order(layout, unit_rows, cut.block_bytes / run_bytes / lanes * lanes, map_pieces);
  const Workspace ordered(order.bytes());
  order.sort(ordered.pieces());
  const EntryProblem<T> problem{{operands.grad_output, operands.dtype, operands.grad_output_stride, layout.rows, operands.tokens},
                                {operands.input, operands.dtype, operands.input_stride, layout.columns, operands.tokens},
                                order, cut.vectors * lanes};
  layout.n <= kSegmentEntries && !many ? dots_in_segments(problem, values, values_dtype, accumulate, threads)
                                       : dots_in_phases(problem, cut, values, values_dtype, accumulate, threads);
}

// Calls f(k, position) for the values that are no padding.
template <class F>
void for_each_position(const Layout& layout, F&& f) {
  Cursor at = cursor_at(layout, 0);
  for (int64_t k = 0; k < values_count(layout); ++k) {
    if (k) advance(layout, at);
    if (const int64_t place = position(layout, at); place != kPadding) f(k, place);
  }
}

// Of a structure that has no method of its own: its positions, row by row, are those of entries.
template <class T>
void position_dots(const WgradOperands& operands, const Layout& layout, void* values,
                   DType values_dtype, bool accumulate, int threads) {
  const int64_t count = values_count(layout);
  const Workspace workspace(2 * Pieces::bytes<int64_t>(count) + Pieces::bytes<T>(count) +
                            Pieces::bytes<int64_t>(layout.rows + 1));
  Pieces from = workspace.pieces();
  int64_t *positions = from.cut<int64_t>(count), *which = from.cut<int64_t>(count);
  T* sums = from.cut<T>(count);
  int64_t* ends = from.cut<int64_t>(layout.rows + 1);  // of the rows before
  memset(ends, 0, (layout.rows + 1) * sizeof *ends);
  for_each_position(layout, [&](int64_t, int64_t place) { ++ends[place / layout.columns + 1]; });
  for (int64_t row = 0; row < layout.rows; ++row) ends[row + 1] += ends[row];
  const int64_t found = ends[layout.rows];
  for_each_position(layout, [&](int64_t k, int64_t place) {
    const int64_t to = ends[place / layout.columns]++;
    positions[to] = place;
    which[to] = k;
  });
  const Layout entries{kEntries, positions, 64, found, 1, 1, layout.rows, layout.columns, 0};
  const DType wide = sizeof(T) == sizeof(double) ? kFloat64 : kFloat32;
  if (found) entry_dots<T>(operands, entries, sums, wide, false, threads);
  with_dtype(values_dtype, [&](auto v) {
    using Values = decltype(v);
    Values* to = static_cast<Values*>(values);
    if (!accumulate) memset(to, 0, count * sizeof(Values));
    for (int64_t i = 0; i < found; ++i) store_sum(to[which[i]], sums[i], accumulate);
  });
}

}  // namespace
}  // namespace sparse_ft
