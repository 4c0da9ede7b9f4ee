// result[m, n] = sum over tokens of a[t, a_column(m)] * b[t, b_column(n)], for one group of values after the other.
// Tokens are the inner dimension and both operands have them outermost, so packing is a copy of the chosen columns and needs no
// transpose. One thread works one tile of the result from the first token to the last: the order of every sum is fixed.
#pragma once

#include "convert.h"
#include "groups.h"
#include "ops.h"
#include "parallel.h"
#include "simd.h"
#include "workspace.h"

namespace sparse_ft {
namespace {

// A register tile is kTileRows x 2 vectors: as many accumulators as the instruction set has registers to spare.
#if defined(__aarch64__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = kVectorBytes == 64 ? 12 : kVectorBytes == 32 ? 6 : 4;
#endif
constexpr int kRowStep = kTileRows % 3 ? kTileRows / 2 : kTileRows / 3;  // a narrow last panel is rounded up to it
template <class T>
constexpr int kTileColumns = 2 * kLanes<T>;

constexpr int64_t kTokens = 256;         // a chunk: one packed panel of b is 16 KiB (AVX2), half of the first-level cache
constexpr int64_t kMaxTileRows = 240;    // packed a stays in the second-level cache: 240 x 256 fp32 = 240 KiB
constexpr int64_t kStripPanels = 4;      // panels of b packed at a time: four neighbouring lines of every source row
constexpr int64_t kTileEntries = 131072; // of the result, a thread: 512 KiB fp32
// Packed together, fetched so many tokens early: 5 % of the columns take 12.6 ms instead of 13.1, 5 % in blocks on two threads 6.6
// instead of 6.9 (T = in = out = 2048, fp32, AVX2).
constexpr int64_t kPackTokens = 4, kTokensAhead = 8;

struct WgradOperands {
  const void* grad_output;  // [tokens, rows]
  int64_t grad_output_stride;
  const void* input;  // [tokens, columns], or [tokens, C] in index order when compact_input
  int64_t input_stride;
  DType dtype;
  int64_t tokens;
  bool compact_input;  // only where columns are chosen
};

struct Operand {
  const void* data;  // [tokens, …]
  int64_t stride;
};

// a is the operand with the chosen side: its panels are narrower, so fewer lanes idle when few lines are chosen.
struct PanelProblem {
  Operand a, b;
  DType dtype;
  int64_t tokens;
  const Layout* layout;
  bool compact_input;
  bool by_columns;  // a is the input: the result is that of the layout transposed
};

// A part of a group: rows [m0, m1) and columns [n0, n1) of the result.
struct Tile {
  int64_t first;  // the group's
  int64_t m0, m1, n0, n1;
};

int64_t a_column(const PanelProblem& problem, int64_t first, int64_t m) {
  if (problem.compact_input) return m;
  return problem.by_columns ? column_of(*problem.layout, first, m) : row_of(*problem.layout, first, m);
}

int64_t b_column(const PanelProblem& problem, int64_t first, int64_t n) {
  return problem.by_columns ? row_of(*problem.layout, first, n) : column_of(*problem.layout, first, n);
}

// packed [tokens, Width] = the named columns of some tokens of source [tokens, …], in the type of the arithmetic. later: the tokens to
// fetch, as many.
template <int Width, class T, class Source>
inline void pack_panel(const Source* source, const Source* later, int64_t stride, int64_t tokens, const int64_t* columns, bool contiguous,
                       T* packed) {
  if (contiguous) {
    for (int64_t t = 0; t < tokens; ++t) {
      __builtin_prefetch(later + t * stride + columns[0]);
      convert_run(packed + t * Width, source + t * stride + columns[0], Width);
    }
    return;
  }
  for (int64_t t = 0; t < tokens; ++t)
    for (int i = 0; i < Width; ++i) {
      __builtin_prefetch(later + t * stride + columns[i]);
      packed[t * Width + i] = convert(source[t * stride + columns[i]], Tag<T>());
    }
}

// packed [panels, tokens, Width]: a few tokens at a time, whose lines are asked for together. Aligned: where its loops begin within a
// line of code makes a tenth of the time of narrow blocks (Zen 4).
template <int Width, class T, class Source>
__attribute__((aligned(64))) void pack(const Source* source, int64_t stride, int64_t tokens, const int64_t* columns, int64_t panels, T* packed) {
  bool contiguous[divide_up(kMaxTileRows, kTileRows) + 1];
  for (int64_t p = 0; p < panels; ++p) {
    contiguous[p] = true;
    for (int i = 1; i < Width; ++i) contiguous[p] &= columns[p * Width + i] == columns[p * Width] + i;
  }
  for (int64_t t = 0; t < tokens; t += kPackTokens) {
    const Source* now = source + t * stride;
    const Source* later = t + kTokensAhead + kPackTokens <= tokens ? now + kTokensAhead * stride : now;
    for (int64_t p = 0; p < panels; ++p)
      pack_panel<Width>(now, later, stride, smaller(kPackTokens, tokens - t), columns + p * Width, contiguous[p],
                        packed + (p * tokens + t) * Width);
  }
}

template <int Width, class T>
void pack(const Operand& operand, DType dtype, int64_t first_token, int64_t tokens, const int64_t* columns, int64_t panels, T* packed) {
  if constexpr (sizeof(T) == sizeof(double)) {
    pack<Width>(static_cast<const double*>(operand.data) + first_token * operand.stride, operand.stride, tokens, columns, panels, packed);
  } else {
    with_dtype(dtype, [&](auto s) {
      using Source = decltype(s);
      if constexpr (sizeof(Source) <= sizeof(float))
        pack<Width>(static_cast<const Source*>(operand.data) + first_token * operand.stride, operand.stride, tokens, columns, panels, packed);
    });
  }
}

// A panel of a that was packed, [tokens, kTileRows].
template <class T>
struct PackedRows {
  const T* data;
  T at(int row, int64_t token) const { return data[token * kTileRows + row]; }
};

// The rows of a as they lie in memory, [rows, tokens]: their tokens are innermost, so that there is nothing to pack.
template <class T>
struct RowsInPlace {
  const T* data;
  int64_t stride;
  T at(int row, int64_t token) const { return data[row * stride + token]; }
};

// result [Rows, kTileColumns] = (add: +=) the first Rows of a * b [tokens, kTileColumns]
template <int Rows, class T, class A>
void multiply_rows(int64_t tokens, const A a, const T* __restrict b, T* __restrict result, int64_t result_stride, bool add) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[Rows][2] = {};
  for (int64_t t = 0; t < tokens; ++t, b += 2 * lanes) {
    const Vec<T> b0 = load(b), b1 = load(b + lanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const T a_i = a.at(i, t);
      sum[i][0] += a_i * b0;
      sum[i][1] += a_i * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    T* row = result + i * result_stride;
    store(row, add ? load(row) + sum[i][0] : sum[i][0]);
    store(row + lanes, add ? load(row + lanes) + sum[i][1] : sum[i][1]);
  }
}

// Writes `rows` of the result, rounded up to a multiple of kRowStep: the last panel of a may be narrow.
template <class T, class A>
void multiply_panels(int64_t rows, int64_t tokens, const A a, const T* b, T* result, int64_t result_stride, bool add) {
  if (rows <= kRowStep) return multiply_rows<kRowStep>(tokens, a, b, result, result_stride, add);
  if (rows <= 2 * kRowStep) return multiply_rows<2 * kRowStep>(tokens, a, b, result, result_stride, add);
  multiply_rows<kTileRows>(tokens, a, b, result, result_stride, add);
}

constexpr int64_t kStoredTogether = 16;  // columns of the result, a line of each of its rows

// A tile of a result that is transposed: the rows of values are its columns.
template <class T, class Values>
void store_transposed(const Layout& layout, const Tile& tile, const T* result, int64_t result_stride, Values* values, bool accumulate) {
  for (int64_t n0 = tile.n0; n0 < tile.n1; n0 += kStoredTogether) {
    const int64_t count = smaller(kStoredTogether, tile.n1 - n0);
    Values* rows[kStoredTogether];
    for (int64_t i = 0; i < count; ++i) rows[i] = values + run_at(layout, tile.first, n0 + i, tile.m0).at;
    for (int64_t m = 0; m < tile.m1 - tile.m0; ++m)
      for (int64_t i = 0; i < count; ++i) store_sum(rows[i][m], result[m * result_stride + n0 - tile.n0 + i], accumulate);
  }
}

// Writes a finished tile into values, in the order of its layout.
template <class T, class Values>
void store_tile(const PanelProblem& problem, const Tile& tile, const T* result, int64_t result_stride, Values* values, bool accumulate) {
  const Layout& layout = *problem.layout;
  if (problem.by_columns) return store_transposed(layout, tile, result, result_stride, values, accumulate);
  for (int64_t m = tile.m0; m < tile.m1; ++m)
    for (int64_t n = tile.n0; n < tile.n1;) {
      const Run run = run_at(layout, tile.first, m, n);
      const int64_t count = smaller(run.count, tile.n1 - n), inside = smaller(run.inside, count);
      const T* from = result + (m - tile.m0) * result_stride + n - tile.n0;
      Values* to = values + run.at;
      for (int64_t i = 0; i < inside; ++i) store_sum(to[i], from[i], accumulate);
      for (int64_t i = inside; i < count && !accumulate; ++i) to[i] = Values{};
      n += count;
    }
}

template <class T>
struct TileWorkspace {
  static constexpr int64_t kStrip = kStripPanels * kTileColumns<T>;
  int64_t *a_columns, *b_columns;
  T *a, *b, *result;

  static int64_t bytes(int64_t height, int64_t width) {
    return Pieces::bytes<int64_t>(height) + Pieces::bytes<int64_t>(kStrip) + Pieces::bytes<T>(height * kTokens) +
           Pieces::bytes<T>(kStrip * kTokens) + Pieces::bytes<T>(height * width);
  }
  TileWorkspace(Pieces from, int64_t height, int64_t width)
      : a_columns(from.cut<int64_t>(height)),
        b_columns(from.cut<int64_t>(kStrip)),
        a(from.cut<T>(height * kTokens)),
        b(from.cut<T>(kStrip * kTokens)),
        result(from.cut<T>(height * width)) {}
};

template <class T>
void compute_tile(const PanelProblem& problem, const Tile& tile, const TileWorkspace<T>& w, int64_t result_stride) {
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t height = tile.m1 - tile.m0, a_panels = divide_up(height, kTileRows);
  for (int64_t m = 0; m < a_panels * kTileRows; ++m) w.a_columns[m] = a_column(problem, tile.first, tile.m0 + smaller(m, height - 1));
  for (int64_t t = 0; t < problem.tokens; t += kTokens) {
    const int64_t tokens = smaller(kTokens, problem.tokens - t);
    pack<kTileRows>(problem.a, problem.dtype, t, tokens, w.a_columns, a_panels, w.a);
    for (int64_t n = tile.n0; n < tile.n1; n += kStripPanels * columns) {
      const int64_t b_panels = smaller(kStripPanels, divide_up(tile.n1 - n, columns));
      for (int64_t i = 0; i < b_panels * columns; ++i) w.b_columns[i] = b_column(problem, tile.first, smaller(n + i, tile.n1 - 1));
      pack<kTileColumns<T>>(problem.b, problem.dtype, t, tokens, w.b_columns, b_panels, w.b);
      for (int64_t q = 0; q < b_panels; ++q)
        for (int64_t p = 0; p < a_panels; ++p)
          multiply_panels(height - p * kTileRows, tokens, PackedRows<T>{w.a + p * tokens * kTileRows}, w.b + q * tokens * columns,
                          w.result + p * kTileRows * result_stride + n - tile.n0 + q * columns, result_stride, t > 0);
    }
  }
}

// Cuts one group of the result, m x n, into tiles: few, since each packs its part of a anew, but enough for the threads.
template <class T, class F>
void cut_group(int64_t first, int64_t m, int64_t n, int threads, F&& f) {
  const int64_t m_parts = divide_up(m, kMaxTileRows);
  const int64_t m_step = round_up(divide_up(m, m_parts), kTileRows);
  int64_t n_parts = divide_up(n, larger(kTileEntries / m_step, 256));
  if (m_parts * n_parts < 4 * threads) n_parts = divide_up(round_up(m_parts * n_parts, threads), m_parts);
  const int64_t n_step = round_up(divide_up(n, n_parts), kTileColumns<T>);
  for (int64_t n0 = 0; n0 < n; n0 += n_step)
    for (int64_t m0 = 0; m0 < m; m0 += m_step) f(Tile{first, m0, smaller(m0 + m_step, m), n0, smaller(n0 + n_step, n)});
}

template <class T, class F>
void for_each_tile(const PanelProblem& problem, int threads, F&& f) {
  for_each_group(*problem.layout, [&](const Group& group) {
    const bool few_groups = group.share > group.of / (4 * threads);
    const int64_t m = problem.by_columns ? group.columns : group.rows, n = problem.by_columns ? group.rows : group.columns;
    cut_group<T>(group.first, m, n, few_groups ? threads : 1, f);
  });
}

template <class T>
void panel_gemm(const PanelProblem& problem, void* values, DType values_dtype, bool accumulate, int threads) {
  int64_t tile_count = 0, height = 0, width = 0;
  for_each_tile<T>(problem, threads, [&](const Tile& tile) {
    ++tile_count;
    height = larger(height, round_up(tile.m1 - tile.m0, kTileRows));
    width = larger(width, round_up(tile.n1 - tile.n0, kTileColumns<T>));
  });
  const int team = static_cast<int>(smaller(threads, tile_count));
  const int64_t thread_bytes = TileWorkspace<T>::bytes(height, width);
  const Workspace workspace(Pieces::bytes<Tile>(tile_count) + team * thread_bytes);
  Pieces pieces = workspace.pieces();
  Tile* tiles = pieces.cut<Tile>(tile_count);
  char* thread_space = pieces.cut<char>(team * thread_bytes);
  tile_count = 0;
  for_each_tile<T>(problem, threads, [&](const Tile& tile) { tiles[tile_count++] = tile; });
  int64_t next = 0;
  parallel(team, [&](int thread, int) {
    const TileWorkspace<T> w(Pieces(thread_space + thread * thread_bytes), height, width);
    for (int64_t i; (i = take(next)) < tile_count;) {
      const int64_t stride = round_up(tiles[i].n1 - tiles[i].n0, kTileColumns<T>);
      compute_tile(problem, tiles[i], w, stride);
      with_dtype(values_dtype, [&](auto v) {
        store_tile(problem, tiles[i], w.result, stride, static_cast<decltype(v)*>(values), accumulate);
      });
    }
  });
}

}  // namespace
}  // namespace sparse_ft
