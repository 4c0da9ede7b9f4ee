// A product of which both operands are packed once, some chunks of tokens at a time: the team packs them together, waits, and
// shares out the tiles of the result. Each tile is summed by one thread, its tokens in order.
#pragma once

#include "panel_gemm.h"
#include "phases.h"

namespace sparse_ft {
namespace {

constexpr int64_t kPackedBytes = 4 << 20;  // of what is packed between two waits, unless one chunk of kTokens alone needs more
constexpr int64_t kUnitPanels = 16;        // of packing work: a KiB of every source row (AVX2)

// packed [tokens, Width] = one panel of a source that has its columns outermost, [columns, tokens]: a transpose of small squares.
// rows: how many of the source lie at `columns[0]` and after it; with fewer than whole squares it goes element by element.
template <int Width, class T>
void pack_transposed_panel(const T* source, int64_t stride, int64_t tokens, const int64_t* columns, int64_t rows, T* packed) {
  constexpr int lanes = kLanes<T>, squares = (Width + lanes - 1) / lanes;
  const bool whole = rows >= squares * lanes;
  const int64_t vector_tokens = whole ? tokens / lanes * lanes : 0;
  const T* from = source + columns[0] * stride;
  for (int64_t t = 0; t < vector_tokens; t += lanes)
    for (int s = 0; s < squares; ++s) {
      Vec<T> token[lanes];
      load_transposed(from + s * lanes * stride + t, stride, token);
      // A store may reach past its token, into the next one, which is written after it; past the last there may be others' panels.
      const int room = Width - s * lanes;
      for (int c = 0; c < lanes; ++c) {
        T* to = packed + (t + c) * Width + s * lanes;
        if (room >= lanes || t + c + 1 < tokens) store(to, token[c]);
        else memcpy(to, &token[c], room * sizeof(T));
      }
    }
  for (int64_t t = vector_tokens; t < tokens; ++t)
    for (int i = 0; i < Width; ++i) packed[t * Width + i] = source[columns[i] * stride + t];
}

// Some columns of one operand, cut into panels that are Width wide.
template <int Width, class T>
struct PackedPanels {
  Operand source;  // [tokens, …]; [columns, tokens] of T when transposed_columns
  DType dtype;
  int64_t count;
  int64_t* columns;  // [count * Width] of the source
  T* packed;         // [chunk, count, tokens, Width]
  int64_t transposed_columns = 0;  // how many columns a source has that keeps them outermost, 0 for one that does not

  int64_t units() const { return divide_up(count, kUnitPanels); }
  int64_t chunk_elements() const { return count * kTokens * Width; }
  const T* panel(int64_t chunk, int64_t which, int64_t tokens) const { return packed + chunk * chunk_elements() + which * tokens * Width; }

  void pack_unit(int64_t unit, int64_t chunk, int64_t first_token, int64_t tokens) const {
    const int64_t begin = unit * kUnitPanels, some = smaller(kUnitPanels, count - begin);
    T* to = packed + chunk * chunk_elements() + begin * tokens * Width;
    if (transposed_columns) {
      for (int64_t p = 0; p < some; ++p) pack_transposed(begin + p, first_token, tokens, to + p * tokens * Width);
      return;
    }
    pack<Width>(source, dtype, first_token, tokens, columns + begin * Width, some, to);
  }

  void pack_transposed(int64_t panel, int64_t first_token, int64_t tokens, T* to) const {
    const int64_t* names = columns + panel * Width;
    const T* from = static_cast<const T*>(source.data) + first_token;
    pack_transposed_panel<Width>(from, source.stride, tokens, names, transposed_columns - names[0], to);
  }
};

template <class T>
struct PackedTile {
  int64_t a_panel, b_panel;  // its first
  int64_t height, width;
  T* result;
};

template <class T>
struct PackedProduct {
  static constexpr int kWidth = kTileColumns<T>;
  int64_t tokens;
  PackedPanels<kTileRows, T> a;
  PackedPanels<kWidth, T> b;
  int64_t stride;   // of the rows of the result
  bool accumulate;  // onto what the result holds; it may hold anything otherwise
  const T* bias = nullptr;  // [columns of the result] that every sum starts from, or null: 0; not with accumulate
  bool a_in_place = false;  // a keeps its rows outermost and side by side: only its last panel is packed, if it is narrow

  int64_t packed_units_of_a() const { return a_in_place ? 0 : a.units(); }
  int64_t units_per_chunk() const { return packed_units_of_a() + b.units(); }
  int64_t tokens_of(int64_t chunk) const { return smaller(kTokens, tokens - chunk * kTokens); }

  // at: where among the packed chunks this one is.
  void pack_unit(int64_t unit, int64_t chunk, int64_t at) const {
    if (unit < packed_units_of_a()) return a.pack_unit(unit, at, chunk * kTokens, tokens_of(chunk));
    b.pack_unit(unit - packed_units_of_a(), at, chunk * kTokens, tokens_of(chunk));
  }

  void add_tile(const PackedTile<T>& tile, int64_t chunk, int64_t at) const {
    const int64_t count = tokens_of(chunk);
    if (bias && chunk == 0)
      for (int64_t m = 0; m < tile.height; ++m) memcpy(tile.result + m * stride, bias + tile.b_panel * kWidth, tile.width * sizeof(T));
    const bool add = accumulate || chunk > 0 || bias;
    const T* b_panels = b.panel(at, tile.b_panel, count);
    for (int64_t n = 0; n < tile.width; n += kWidth)
      for (int64_t m = 0; m < tile.height; m += kTileRows) {
        T* to = tile.result + m * stride + n;
        const Part part{smaller(kTileRows, tile.height - m), smaller(kWidth, tile.width - n), count, to, add};
        const int64_t a_panel = tile.a_panel + m / kTileRows;
        const T* b_panel = b_panels + n * count;
        if (!a_in_place) add_part(part, PackedRows<T>{a.panel(at, a_panel, count)}, b_panel);
        else if (part.rows % kRowStep == 0) add_part(part, rows_in_place(a_panel, chunk), b_panel);
        else add_last_rows(part, a_panel, chunk, b_panel);
      }
  }

 private:
  struct Part {
    int64_t rows, columns, tokens;
    T* to;
    bool add;
  };

  RowsInPlace<T> rows_in_place(int64_t panel, int64_t chunk) const {
    const int64_t first = a.columns[panel * kTileRows];
    return {static_cast<const T*>(a.source.data) + first * a.source.stride + chunk * kTokens, a.source.stride};
  }

  // The rows beyond the last that a whole step would read are not there.
  void add_last_rows(const Part& part, int64_t panel, int64_t chunk, const T* b_panel) const {
    T rows[kTileRows * kTokens];
    a.pack_transposed(panel, chunk * kTokens, part.tokens, rows);
    add_part(part, PackedRows<T>{rows}, b_panel);
  }

  template <class A>
  void add_part(const Part& part, const A rows_of_a, const T* b_panel) const {
    if (part.rows % kRowStep == 0 && part.columns == kWidth)
      return multiply_panels(part.rows, part.tokens, rows_of_a, b_panel, part.to, stride, part.add);
    T whole[kTileRows * kWidth];  // the rest of it is not there
    multiply_panels(part.rows, part.tokens, rows_of_a, b_panel, whole, kWidth, false);
    for (int64_t i = 0; i < part.rows; ++i)
      for (int64_t j = 0; j < part.columns; ++j)
        part.to[i * stride + j] = whole[i * kWidth + j] + (part.add ? part.to[i * stride + j] : T{});
  }
};

// tile_at(i): the i-th of `tiles`. Those of one unit follow each other on one thread.
template <class T, class TileAt>
void multiply_packed(PackedProduct<T>& product, int64_t tiles, int64_t unit, int threads, TileAt&& tile_at) {
  const int64_t elements_of_a = product.a_in_place ? 0 : product.a.chunk_elements();
  const int64_t elements = elements_of_a + product.b.chunk_elements();
  const int64_t all_chunks = divide_up(product.tokens, kTokens);
  const int64_t chunks = larger(1, smaller(all_chunks, kPackedBytes / (elements * static_cast<int64_t>(sizeof(T)))));
  const Workspace packed(Pieces::bytes<T>(chunks * elements));
  product.a.packed = packed.pieces().template cut<T>(0);
  product.b.packed = product.a.packed + chunks * elements_of_a;
  const int64_t units = product.units_per_chunk();
  in_phases(all_chunks, chunks, threads, [&](int64_t first, int64_t now, const Phase& pack, const Phase& add, int) {
    pack.share(now * units, [&](int64_t i) { product.pack_unit(i % units, first + i / units, i / units); });
    add.share(divide_up(tiles, unit), [&](int64_t i) {
      for (int64_t chunk = 0; chunk < now; ++chunk)
        for (int64_t t = i * unit; t < smaller((i + 1) * unit, tiles); ++t) product.add_tile(tile_at(t), first + chunk, chunk);
    });
  });
}

}  // namespace
}  // namespace sparse_ft
