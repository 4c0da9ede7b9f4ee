// values[b] = a panel of grad_output transposed * a panel of input, for blocks that fill register tiles.
// The block rows of grad_output and the block columns of input that are needed are packed once, a chunk of tokens at a time; the team
// packs a chunk together, waits, and shares out the blocks. Each block is summed by one thread, its tokens in order.
#pragma once

#include "panel_gemm.h"
#include "phases.h"
#include "used.h"

namespace sparse_ft {
namespace {

constexpr int64_t kBlockBytes = 4 << 20;  // of both packed operands, unless one chunk of kTokens alone needs more
constexpr int64_t kUnitPanels = 16;        // of packing work: a KiB of every source row (AVX2)

// Blocks whose width leaves no more than a quarter of the register tiles idle.
template <class T>
bool fills_panels(const Layout& layout) {
  return layout.kind == kBlocks && 4 * layout.block_w >= 3 * round_up(layout.block_w, kTileColumns<T>);
}

// The blocks of one operand, each cut into panels that are Width wide.
template <int Width, class T>
struct PackedBlocks {
  Operand source;  // [tokens, size]
  DType dtype;
  int64_t size, block;  // block_h or block_w
  Used used;            // the blocks that are packed
  T* packed;            // [chunk, used, panels a block, tokens, Width]

  int64_t panels_per_block() const { return divide_up(block, Width); }
  int64_t all_panels() const { return used.count * panels_per_block(); }
  int64_t units() const { return divide_up(all_panels(), kUnitPanels); }
  int64_t chunk_elements() const { return all_panels() * kTokens * Width; }
  const T* panels(int64_t chunk, int64_t which, int64_t tokens) const {
    return packed + chunk * chunk_elements() + used.slot[which] * panels_per_block() * tokens * Width;
  }

  void pack_unit(int64_t unit, int64_t chunk, int64_t first_token, int64_t tokens) const {
    const int64_t begin = unit * kUnitPanels, count = smaller(kUnitPanels, all_panels() - begin);
    int64_t columns[kUnitPanels * Width];
    for (int64_t p = 0; p < count; ++p) {
      const int64_t first = used.column[(begin + p) / panels_per_block()] * block + (begin + p) % panels_per_block() * Width;
      for (int64_t i = 0; i < Width; ++i) columns[p * Width + i] = smaller(first + i, size - 1);
    }
    pack<Width>(source, dtype, first_token, tokens, columns, count, packed + chunk * chunk_elements() + begin * tokens * Width);
  }
};

template <class T>
struct BlockProblem {
  static constexpr int kWidth = kTileColumns<T>;
  const Layout& layout;
  int64_t tokens;
  PackedBlocks<kTileRows, T> a;
  PackedBlocks<kWidth, T> b;
  T* sums;  // [n, block_h, block_w]

  int64_t units_per_chunk() const { return a.units() + b.units(); }
  int64_t tokens_of(int64_t chunk) const { return smaller(kTokens, tokens - chunk * kTokens); }

  void pack_unit(int64_t unit, int64_t first_chunk) const {
    const int64_t chunk = unit / units_per_chunk(), within = unit % units_per_chunk(), token = (first_chunk + chunk) * kTokens;
    if (within < a.units()) return a.pack_unit(within, chunk, token, tokens_of(first_chunk + chunk));
    b.pack_unit(within - a.units(), chunk, token, tokens_of(first_chunk + chunk));
  }

  // Adds the products of one chunk to the block, where it is inside of the matrix.
  void add_block(int64_t block, int64_t first_chunk, int64_t chunk) const {
    const int64_t block_row = index_at(layout, 2 * block), block_column = index_at(layout, 2 * block + 1);
    const int64_t height = smaller(layout.block_h, layout.rows - block_row * layout.block_h);
    const int64_t width = smaller(layout.block_w, layout.columns - block_column * layout.block_w);
    const int64_t count = tokens_of(first_chunk + chunk);
    const T *a_panels = a.panels(chunk, block_row, count), *b_panels = b.panels(chunk, block_column, count);
    for (int64_t n = 0; n < width; n += kWidth)
      for (int64_t m = 0; m < height; m += kTileRows) {
        const int64_t rows = smaller(kTileRows, height - m);
        T* to = sums + (block * layout.block_h + m) * layout.block_w + n;
        if (rows % kRowStep == 0 && width - n >= kWidth) {
          multiply_panels(rows, count, a_panels + m * count, b_panels + n * count, to, layout.block_w);
          continue;
        }
        T tile[kTileRows * kWidth] = {};  // part of it is not there
        multiply_panels(rows, count, a_panels + m * count, b_panels + n * count, tile, kWidth);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < smaller(kWidth, width - n); ++j) to[i * layout.block_w + j] += tile[i * kWidth + j];
      }
  }
};

template <class T>
void block_panels(const PanelProblem& panels, void* values, DType values_dtype, bool accumulate, int threads) {
  const Layout& layout = *panels.layout;
  const bool in_values = is_dtype<T>(values_dtype);
  const int64_t count = values_count(layout);
  const int64_t down = divide_up(layout.rows, layout.block_h), across = divide_up(layout.columns, layout.block_w);
  const Workspace maps(Used::bytes(down) + Used::bytes(across) + (in_values ? 0 : Pieces::bytes<T>(count)));
  Pieces from = maps.pieces();
  BlockProblem<T> problem{layout, panels.tokens,
                          {panels.a, panels.dtype, layout.rows, layout.block_h, Used(from, down), nullptr},
                          {panels.b, panels.dtype, layout.columns, layout.block_w, Used(from, across), nullptr},
                          in_values ? static_cast<T*>(values) : nullptr};
  if (!in_values) problem.sums = from.cut<T>(count);
  if (!in_values || !accumulate) memset(problem.sums, 0, count * sizeof(T));
  for (int64_t block = 0; block < layout.n; ++block) {
    problem.a.used.mark(index_at(layout, 2 * block));
    problem.b.used.mark(index_at(layout, 2 * block + 1));
  }
  problem.a.used.collect(down);
  problem.b.used.collect(across);

  const int64_t elements = problem.a.chunk_elements() + problem.b.chunk_elements();
  const int64_t all_chunks = divide_up(panels.tokens, kTokens);
  const int64_t chunks = larger(1, smaller(all_chunks, kBlockBytes / (elements * static_cast<int64_t>(sizeof(T)))));
  const Workspace packed(Pieces::bytes<T>(chunks * elements));
  problem.a.packed = packed.pieces().template cut<T>(0);
  problem.b.packed = problem.a.packed + chunks * problem.a.chunk_elements();
  const int64_t unit = divide_up(layout.n, 8 * threads);
  in_phases(all_chunks, chunks, threads, [&](int64_t first, int64_t now, const Phase& pack, const Phase& add, int) {
    pack.share(now * problem.units_per_chunk(), [&](int64_t i) { problem.pack_unit(i, first); });
    add.share(divide_up(layout.n, unit), [&](int64_t i) {
      for (int64_t chunk = 0; chunk < now; ++chunk)
        for (int64_t block = i * unit; block < smaller((i + 1) * unit, layout.n); ++block) problem.add_block(block, first, chunk);
    });
  });
  if (!in_values) store_sums(problem.sums, count, values, values_dtype, accumulate);
}

}  // namespace
}  // namespace sparse_ft
