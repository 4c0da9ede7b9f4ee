// Runs every op of the CPU core over heap buffers of exactly the size that its contract names, for AddressSanitizer to watch, and
// compares the sums with a plain loop. With the argument "plant", a buffer is shorter than its tensor: the sanitizer must say so.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "../../csrc/cpu/ops.h"
#include "views.h"

using namespace sparse_ft;

namespace {

int64_t size_of(DType dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// Small numbers that every dtype holds exactly: sums come out the same in any order.
struct Buffer {
  DType dtype;
  int64_t count;
  char* data;

  Buffer(DType dtype, int64_t count, int seed = 0) : dtype(dtype), count(count), data(static_cast<char*>(malloc(count * size_of(dtype)))) {
    for (int64_t i = 0; i < count; ++i) set(i, static_cast<int>((i * 7 + seed * 5) % 9) - 4);
  }
  ~Buffer() { free(data); }
  Buffer(const Buffer&) = delete;

  void set(int64_t i, double x) {
    with_dtype(dtype, [&](auto t) { reinterpret_cast<decltype(t)*>(data)[i] = convert(x, Tag<decltype(t)>()); });
  }
  double get(int64_t i) const {
    double x = 0;
    with_dtype(dtype, [&](auto t) { x = convert(reinterpret_cast<const decltype(t)*>(data)[i], Tag<double>()); });
    return x;
  }
};

// A layout with an index of exactly its size. Every third row, column, block or entry, and the last.
struct Selected {
  Layout layout;
  void* index;

  Selected(Kind kind, int bits, int64_t rows, int64_t columns, int64_t block_h, int64_t block_w) : layout{}, index(nullptr) {
    const int64_t across = (columns + block_w - 1) / block_w, down = (rows + block_h - 1) / block_h;
    const int64_t all = kind == kRows ? rows : kind == kColumns ? columns : kind == kBlocks ? down * across : kind == kEntries ? rows * columns : 0;
    std::vector<int64_t> chosen;
    for (int64_t i = 0; i < all; ++i) {
      if (i % 3 && i != all - 1) continue;
      if (kind == kBlocks) chosen.push_back(i / across);
      chosen.push_back(kind == kBlocks ? i % across : i);
    }
    const int64_t n = static_cast<int64_t>(chosen.size());
    index = malloc(n * bits / 8);
    layout = Layout{kind, index, bits, kind == kBlocks ? n / 2 : n, block_h, block_w, rows, columns, 0};
    for (int64_t i = 0; i < n; ++i) set(i, chosen[i]);
  }
  ~Selected() { free(index); }
  Selected(const Selected&) = delete;

  void set(int64_t i, int64_t x) {
    if (layout.index_bits == 64) static_cast<int64_t*>(index)[i] = x;
    else static_cast<int32_t*>(index)[i] = static_cast<int32_t>(x);
  }
};

void expect(bool holds, const char* what, const Layout& layout, int64_t k) {
  if (holds) return;
  fprintf(stderr, "wrong result: %s, kind %d, value %lld\n", what, layout.kind, static_cast<long long>(k));
  exit(2);
}

Tensor matrix_of(const Buffer& of, int64_t rows, int64_t columns, int64_t stride = 0) {
  return view(of.data, of.dtype, {rows, columns}, stride);
}

Tensor line_of(const Buffer& of) { return view(of.data, of.dtype, {of.count}); }

const MaybeTensor kNone{};

void copies(const Layout& layout, DType matrix_dtype, DType values_dtype) {
  Buffer matrix(matrix_dtype, layout.rows * layout.columns), values(values_dtype, values_count(layout), 1);
  const Tensor whole = matrix_of(matrix, layout.rows, layout.columns), some = line_of(values);
  const Selection where = selection_of(layout);
  baseline::gather_selected(whole, where, some, 0, 2);
  for (int64_t k = 0; k < values.count; ++k) {
    const int64_t at = position(layout, k);
    expect(values.get(k) == (at == kPadding ? 0 : matrix.get(at)), "gather", layout, k);
  }
  baseline::scatter_selected_(whole, where, some, kAdd, 2);
  baseline::scatter_selected_(whole, where, some, kCopy, 2);
  if (matrix_dtype == values_dtype) baseline::scatter_selected_(whole, where, some, kSwap, 2);
}

void wgrad(const Layout& layout, DType dtype, DType values_dtype, int64_t tokens, bool compact) {
  const int64_t width = compact ? layout.n : layout.columns;
  Buffer grad_output(dtype, tokens * layout.rows, 2), input(dtype, tokens * width, 3), values(values_dtype, values_count(layout));
  const Tensor a = matrix_of(grad_output, tokens, layout.rows), b = matrix_of(input, tokens, width);
  baseline::selected_wgrad(a, b, selection_of(layout), line_of(values), false, 3);
  for (int64_t k = 0; k < values.count; ++k) {
    const int64_t at = position(layout, k);
    double want = 0;
    for (int64_t t = 0; t < tokens && at != kPadding; ++t)
      want += grad_output.get(t * layout.rows + at / layout.columns) * input.get(t * width + (compact ? k % layout.n : at % layout.columns));
    Buffer rounded(values_dtype, 1);
    rounded.set(0, want);
    expect(values.get(k) == rounded.get(0), "wgrad", layout, k);
  }
  baseline::selected_wgrad(a, b, selection_of(layout), line_of(values), true, 3);
}

void adamw(const Layout& layout, DType dtype, DType weight_dtype) {
  const int64_t count = values_count(layout);
  Buffer value(dtype, count), grad(dtype, count, 1), m(dtype, count, 2), v(dtype, count), weight(weight_dtype, layout.rows * layout.columns);
  for (int64_t i = 0; i < count; ++i) v.set(i, 1);
  float* step = static_cast<float*>(calloc(1, sizeof(float)));
  const AdamWTensor tensor{value.data, grad.data, m.data, v.data, step, count, dtype, weight.data, weight_dtype, layout,
                           0.01, 0.9, 0.99, 1e-8, 0.1, nullptr, AdamWStorage{}};
  expect(!step_on_cpu({tensor}, false, 1.0, 2) && *step == 1, "adamw", layout, 0);
  free(step);
}

// Rows that lie apart, the last one ending where its buffer ends.
void rowwise(DType dtype, DType other, int64_t rows, int64_t columns) {
  const int64_t stride = columns + 5, held = (rows - 1) * stride + columns;
  Buffer a(dtype, held, 1), b(dtype, held, 2), c(dtype, held, 3), weight(other, columns, 4), out(dtype, rows * columns), out2(dtype, rows * columns);
  const Tensor ra = matrix_of(a, rows, columns, stride), rb = matrix_of(b, rows, columns, stride), rc = matrix_of(c, rows, columns, stride);
  const Tensor to = line_of(out), to2 = line_of(out2);
  for (Activation activation : {kSilu, kGelu, kGeluTanh, kRelu}) {
    baseline::activation(ra, activation, to, 2);
    baseline::activation_backward(rc, ra, activation, to2, 2);
  }
  for (int64_t k = 0; k < rows * columns; ++k) {  // of relu, exact in every dtype
    const int64_t at = k / columns * stride + k % columns;
    expect(out.get(k) == (a.get(at) > 0 ? a.get(at) : 0), "activation", Layout{}, k);
    expect(out2.get(k) == (a.get(at) > 0 ? c.get(at) : 0), "activation_backward", Layout{}, k);
  }
  for (Activation activation : {kSilu, kGelu, kGeluTanh, kRelu}) {
    baseline::gated_product(ra, rb, activation, to, 2);
    baseline::gated_product_backward(rc, ra, rb, activation, to, to2, 2);
  }
  for (int64_t k = 0; k < rows * columns; ++k) {  // of relu: the grads, exact in every dtype
    const int64_t at = k / columns * stride + k % columns;
    expect(out.get(k) == (a.get(at) > 0 ? c.get(at) * b.get(at) : 0), "grad_gate", Layout{}, k);
    expect(out2.get(k) == (a.get(at) > 0 ? c.get(at) * a.get(at) : 0), "grad_up", Layout{}, k);
  }
  Buffer rstd(dtype == kFloat64 || other == kFloat64 ? kFloat64 : kFloat32, rows), output(other, rows * columns);
  for (const MaybeTensor& w : {maybe(line_of(weight)), kNone}) {
    baseline::rms_norm(ra, w, 1e-6, 1.0, line_of(output), line_of(rstd), 2);
    baseline::rms_norm_backward(rc, ra, line_of(rstd), w, 1.0, to, 2);
  }
  for (int64_t k = 0; k < rows * columns; ++k) expect(std::isfinite(output.get(k)) && std::isfinite(out.get(k)), "rms_norm", Layout{}, k);
}

// Rows that lie apart, the last one ending where its buffer ends.
void dense(int64_t tokens, int64_t inner, int64_t columns, bool by_rows) {
  const int64_t lines = by_rows ? columns : inner, line = by_rows ? inner : columns, input_stride = inner + 3, weight_stride = line + 5;
  Buffer input(kFloat32, (tokens - 1) * input_stride + inner, 1), weight(kFloat32, (lines - 1) * weight_stride + line, 2);
  Buffer bias(kFloat32, columns, 3), output(kFloat32, tokens * columns);
  const Tensor from = matrix_of(input, tokens, inner, input_stride);
  Tensor stored = matrix_of(weight, lines, line, weight_stride);
  if (!by_rows) std::swap(stored.size[0], stored.size[1]), std::swap(stored.stride[0], stored.stride[1]);
  for (const MaybeTensor& added : {kNone, maybe(line_of(bias))}) {
    for (int threads : {1, 3}) baseline::dense_product(from, stored, added, line_of(output), threads);
    for (int64_t k = 0; k < tokens * columns; ++k) {
      double want = added.data ? bias.get(k % columns) : 0;
      for (int64_t i = 0; i < inner; ++i)
        want += input.get(k / columns * input_stride + i) *
                weight.get(by_rows ? k % columns * weight_stride + i : i * weight_stride + k % columns);
      expect(std::fabs(output.get(k) - want) <= 1e-4 * (1 + inner), "dense_product", Layout{}, k);
    }
  }
}

void bits(DType dtype, int64_t count) {
  Buffer input(dtype, count, 1), output(dtype, count), relu(dtype, count);
  uint8_t* packed = static_cast<uint8_t*>(malloc((count + 7) / 8));
  const Tensor flags = view(packed, kUInt8, {(count + 7) / 8});
  baseline::positive_bits(line_of(input), flags, kNone, 2);
  baseline::positive_bits(line_of(input), flags, maybe(line_of(relu)), 2);
  for (int64_t k = 0; k < count; ++k) expect(relu.get(k) == (input.get(k) > 0 ? input.get(k) : 0), "relu", Layout{}, k);
  if (count % 2 == 0)
    for (int64_t inner : {int64_t{1}, count / 2}) {
      const int64_t channels = inner == 1 ? count : 2;
      Buffer variance(dtype, channels, 2);
      const Tensor from = view(input.data, dtype, {1, channels, inner}), to = view(output.data, dtype, {1, channels, inner});
      for (const MaybeTensor& positive : {kNone, maybe(flags)}) {
        baseline::batch_norm_backward(from, line_of(variance), kNone, 100.0, positive, to, 2);
        for (int64_t k = 0; k < count; ++k) expect(std::isfinite(output.get(k)), "batch_norm_backward", Layout{}, k);
      }
      for (const MaybeTensor& written : {kNone, maybe(flags)}) {
        baseline::batch_norm_(to, line_of(variance), line_of(variance), kNone, kNone, 100.0, written, 2);
        for (int64_t k = 0; k < count; ++k) expect(std::isfinite(output.get(k)), "batch_norm_", Layout{}, k);
      }
      baseline::positive_bits(line_of(input), flags, kNone, 2);  // for where_bits
    }
  for (double scale : {1.0, 2.0}) {
    baseline::where_bits(line_of(input), flags, scale, line_of(output), 2);
    for (int64_t k = 0; k < count; ++k) expect(output.get(k) == (input.get(k) > 0 ? scale * input.get(k) : 0), "bits", Layout{}, k);
  }
  free(packed);
}

void pool(DType dtype, int64_t side) {
  for (int64_t k : {1, 3})
    for (int64_t step : {1, 2, 3}) {
      const int64_t padding = k / 2, out = (side + 2 * padding - k) / step + 1;
      Buffer input(dtype, 2 * side * side, 1), output(dtype, 2 * out * out);
      uint8_t* numbers = static_cast<uint8_t*>(malloc(2 * out * out));
      const Tensor from = view(input.data, dtype, {2, side, side}), to = view(output.data, dtype, {2, out, out});
      baseline::max_pool(from, {k, k}, {step, step}, {padding, padding}, {1, 1}, to, view(numbers, kUInt8, {2, out, out}), 2);
      for (int64_t i = 0; i < 2 * out * out; ++i) expect(numbers[i] < k * k && std::isfinite(output.get(i)), "max_pool", Layout{}, i);
      free(numbers);
    }
}

void every_op(const Layout& layout) {
  const DType dtypes[] = {kFloat32, kFloat64, kBFloat16, kFloat16};
  for (DType a : dtypes)
    for (DType b : dtypes) {
      copies(layout, a, b);
      adamw(layout, a, b);
      if (layout.kind == kAll) continue;
      for (int64_t tokens : {0, 1, 70}) wgrad(layout, a, b, tokens, false);
      if (layout.kind == kColumns) wgrad(layout, a, b, 9, true);
    }
  if (layout.kind == kAll) return;
  wgrad(layout, kFloat32, kFloat32, 300, false);  // more than one chunk of tokens
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !strcmp(argv[1], "plant")) {
    Buffer input(kFloat32, 6), output(kFloat32, 7);
    baseline::activation(view(input.data, kFloat32, {7}), kRelu, line_of(output), 1);
    return 0;
  }
  const int64_t shapes[][2] = {{1, 1}, {1, 13}, {11, 1}, {7, 10}, {33, 37}};
  const int64_t blocks[][2] = {{3, 4}, {16, 16}, {2, 31}};
  for (const auto& shape : shapes)
    for (int bits : {32, 64}) {
      for (Kind kind : {kRows, kColumns, kEntries, kAll}) every_op(Selected(kind, bits, shape[0], shape[1], 1, 1).layout);
      for (const auto& block : blocks) every_op(Selected(kBlocks, bits, shape[0], shape[1], block[0], block[1]).layout);
    }
  for (DType dtype : {kFloat32, kFloat64, kBFloat16, kFloat16}) {
    for (int64_t count : {1, 7, 8, 9, 511, 513, 40001}) bits(dtype, count);
    for (int64_t side : {1, 2, 9, 130}) pool(dtype, side);
  }
  for (DType dtype : {kFloat32, kFloat64, kBFloat16, kFloat16})
    for (DType other : {kFloat32, kFloat64, kBFloat16, kFloat16})
      for (const auto& shape : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {2, 513}, {40, 1030}}) rowwise(dtype, other, shape.first, shape.second);
  for (bool transposed : {false, true})
    for (const auto& inner_columns : {std::pair<int64_t, int64_t>{1, 1}, {5, 7}, {16, 32}, {17, 33}, {300, 70}})
      for (int64_t tokens : {1, 12, 29}) dense(tokens, inner_columns.first, inner_columns.second, transposed);
  puts("every op stayed inside its buffers");
  return 0;
}
