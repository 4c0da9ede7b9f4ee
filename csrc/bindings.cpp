// The module sparse_ft._C. Tensors come as addresses; the Python side owns them and has checked their shapes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <sstream>
#include <tuple>

#include "build_config.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"
#include "cpu/variants.h"
#include "cpu/walk.h"
#if SFT_CUDA
#include "cuda/gather_selected.h"
#include "cuda/masked_adamw.h"
#include "cuda/scatter_selected.h"
#endif

namespace py = pybind11;

namespace sparse_ft {
namespace {

using Address = uintptr_t;
// kind, index, index_bits, n, block_h, block_w, rows, columns
using LayoutTuple = std::tuple<int, Address, int, int64_t, int64_t, int64_t, int64_t, int64_t>;

void require(bool holds, const char* argument, int64_t value, const char* expected) {
  if (holds) return;
  std::ostringstream message;
  message << argument << " must be " << expected << ", got " << value;
  throw std::invalid_argument(message.str());
}

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

DType dtype(int code, const char* argument) {
  require(code >= kFloat32 && code <= kFloat16, argument, code, "0 (float32), 1 (float64), 2 (bfloat16) or 3 (float16)");
  return static_cast<DType>(code);
}

ScatterMode scatter_mode(int code, DType matrix_dtype, DType values_dtype) {
  require(code >= kCopy && code <= kSwap, "mode", code, "0 (copy), 1 (add) or 2 (swap)");
  require(code != kSwap || matrix_dtype == values_dtype, "values_dtype", values_dtype, "matrix_dtype in a swap");
  return static_cast<ScatterMode>(code);
}

Layout layout(const LayoutTuple& tuple) {
  const auto [kind, index, index_bits, n, block_h, block_w, rows, columns] = tuple;
  require(kind >= kRows && kind <= kAll, "layout kind", kind, "0 (rows), 1 (columns), 2 (blocks), 3 (entries) or 4 (all)");
  require(index_bits == 32 || index_bits == 64, "layout index_bits", index_bits, "32 or 64");
  require(n >= 0, "layout n", n, "non-negative");
  require(block_h > 0, "layout block_h", block_h, "positive");
  require(block_w > 0, "layout block_w", block_w, "positive");
  require(rows >= 0, "layout rows", rows, "non-negative");
  require(columns >= 0, "layout columns", columns, "non-negative");
  return Layout{static_cast<Kind>(kind), pointer(index), index_bits, n, block_h, block_w, rows, columns, 0};
}

// An index in host memory. Messages name the argument as sparse_ft.ops has it: whoever edits an index calls no kernel himself.
void require_readable(const Layout& l) { require(l.index || !l.n || l.kind == kAll, "index", 0, "a tensor whose memory is there"); }

Layout readable_layout(const LayoutTuple& tuple) {
  const Layout l = layout(tuple);
  require_readable(l);
  return l;
}

[[noreturn]] void throw_outside(const Layout& l) {
  std::ostringstream message;
  message << "index: it names " << (l.kind == kRows ? "rows" : l.kind == kColumns ? "columns" : l.kind == kBlocks ? "blocks" : "entries")
          << " that a matrix of shape (" << l.rows << ", " << l.columns
          << ") does not have; was it edited after the selection was made? Make a new selection instead";
  throw py::index_error(message.str());
}

void require_inside(const Layout& l) {
  if (!inside(l)) throw_outside(l);
}

// Kernels that walk single entries look at those themselves.
void require_walkable(const Layout& l) {
  require_readable(l);
  if (l.kind != kEntries) require_inside(l);
}

Layout walked_layout(const LayoutTuple& tuple) {
  const Layout l = layout(tuple);
  require_walkable(l);
  return l;
}

int thread_count(int threads) {
  require(threads > 0, "threads", threads, "positive");
  return threads;
}

// first: the position that entries have for the first of the matrix, which may be a part of a larger one.
void gather_selected(Address matrix, int matrix_dtype, const LayoutTuple& where, Address values, int values_dtype, int threads,
                     int64_t first) {
  Layout l = walked_layout(where);
  l.first = first;
  if (!cpu_ops().gather_selected(pointer(matrix), dtype(matrix_dtype, "matrix_dtype"), l, pointer(values),
                                 dtype(values_dtype, "values_dtype"), thread_count(threads)))
    throw_outside(l);
}

void gather_selected_cuda(Address matrix, int matrix_dtype, const LayoutTuple& where, Address values, int values_dtype, Address stream) {
#if SFT_CUDA
  cuda::gather_selected(pointer(matrix), dtype(matrix_dtype, "matrix_dtype"), layout(where), pointer(values),
                        dtype(values_dtype, "values_dtype"), stream);
#else
  (void)matrix, (void)matrix_dtype, (void)where, (void)values, (void)values_dtype, (void)stream;
  throw std::runtime_error("gather_selected_cuda: this build has no CUDA: " SFT_CUDA_REASON);
#endif
}

void scatter_selected_(Address matrix, int matrix_dtype, const LayoutTuple& where, Address values, int values_dtype, int mode, int threads) {
  const DType m = dtype(matrix_dtype, "matrix_dtype"), v = dtype(values_dtype, "values_dtype");
  const Layout l = walked_layout(where);
  if (!cpu_ops().scatter_selected_(pointer(matrix), m, l, pointer(values), v, scatter_mode(mode, m, v), thread_count(threads)))
    throw_outside(l);
}

void scatter_selected_cuda_(Address matrix, int matrix_dtype, const LayoutTuple& where, Address values, int values_dtype, int mode,
                            Address stream) {
#if SFT_CUDA
  const DType m = dtype(matrix_dtype, "matrix_dtype"), v = dtype(values_dtype, "values_dtype");
  cuda::scatter_selected_(pointer(matrix), m, layout(where), pointer(values), v, scatter_mode(mode, m, v), stream);
#else
  (void)matrix, (void)matrix_dtype, (void)where, (void)values, (void)values_dtype, (void)mode, (void)stream;
  throw std::runtime_error("scatter_selected_cuda_: this build has no CUDA: " SFT_CUDA_REASON);
#endif
}

void selected_wgrad(Address grad_output, int64_t grad_output_stride, Address input, int64_t input_stride, int operand_dtype, int64_t tokens,
                    const LayoutTuple& where, bool compact_input, Address values, int values_dtype, bool accumulate, int threads) {
  const Layout l = readable_layout(where);
  if (!compact_input) require_inside(l);  // whose index says which columns the caller has chosen already
  require(tokens >= 0, "tokens", tokens, "non-negative");
  require(!compact_input || l.kind == kColumns, "compact_input", compact_input, "false unless the layout kind is 1 (columns)");
  const WgradOperands operands{pointer(grad_output), grad_output_stride, pointer(input), input_stride,
                               dtype(operand_dtype, "operand_dtype"), tokens, compact_input};
  cpu_ops().selected_wgrad(operands, l, pointer(values), dtype(values_dtype, "values_dtype"), accumulate, thread_count(threads));
}

void dense_product(Address input, int64_t input_stride, Address weight, int64_t weight_stride, bool weight_transposed, Address bias,
                   int64_t tokens, int64_t inner, int64_t columns, Address output, int threads) {
  require(tokens >= 0, "tokens", tokens, "non-negative");
  require(inner >= 0, "inner", inner, "non-negative");
  require(columns >= 0, "columns", columns, "non-negative");
  const DenseOperands operands{static_cast<const float*>(pointer(input)), input_stride, static_cast<const float*>(pointer(weight)),
                               weight_stride, weight_transposed, static_cast<const float*>(pointer(bias)), tokens, inner, columns};
  cpu_ops().dense_product(operands, static_cast<float*>(pointer(output)), thread_count(threads));
}

AdamWStorage storage(DType values, Address correction, int64_t seed, Address exp_avg_absmax, Address exp_avg_sq_absmax) {
  const bool by_chance = seed >= 0;
  require(!correction || values == kBFloat16, "dtype", values, "2 (bfloat16) with a correction");
  require(!by_chance || values == kBFloat16 || values == kFloat16, "dtype", values, "2 (bfloat16) or 3 (float16) with a seed");
  require(!by_chance || !correction, "seed", seed, "-1 with a correction");
  require(seed >> 48 <= 0, "seed", seed, "less than 2^48");
  require(!exp_avg_absmax || values != kFloat64, "dtype", values, "0 (float32), 2 (bfloat16) or 3 (float16) with an absmax");
  require(!exp_avg_absmax == !exp_avg_sq_absmax, "exp_avg_sq_absmax", static_cast<int64_t>(exp_avg_sq_absmax), "given with exp_avg_absmax");
  return AdamWStorage{static_cast<int16_t*>(pointer(correction)), by_chance, by_chance ? static_cast<uint64_t>(seed) : 0,
                      static_cast<float*>(pointer(exp_avg_absmax)), static_cast<float*>(pointer(exp_avg_sq_absmax))};
}

// A tensor of masked_adamw_ as Python holds it from step to step, but for what comes with each: gradient and settings.
AdamWTensor adamw_tensor(Address values, Address exp_avg, Address exp_avg_sq, Address step, int64_t count, int code, int64_t seed,
                         Address correction, Address exp_avg_absmax, Address exp_avg_sq_absmax, Address weight, int weight_code,
                         const std::optional<LayoutTuple>& where) {
  require(count >= 0, "count", count, "non-negative");
  AdamWTensor t{};
  t.values = pointer(values), t.exp_avg = pointer(exp_avg), t.exp_avg_sq = pointer(exp_avg_sq);
  t.step = static_cast<float*>(pointer(step));
  t.count = count;
  t.dtype = dtype(code, "dtype");
  t.storage = storage(t.dtype, correction, seed, exp_avg_absmax, exp_avg_sq_absmax);
  if (!weight) return t;
  require(where.has_value(), "layout", 0, "given with a weight");
  t.weight = pointer(weight), t.weight_dtype = dtype(weight_code, "weight_dtype"), t.layout = layout(*where);
  require(count == values_count(t.layout), "count", count, "the number of values of the layout");
  return t;
}

struct AdamWSettings {
  double lr, beta1, beta2, eps, weight_decay;
  Address lr_at;  // of one float that counts instead of lr, or 0
};

// One gradient's address and one settings a tensor.
std::vector<AdamWTensor> adamw_tensors(const std::vector<const AdamWTensor*>& known, const std::vector<Address>& grads,
                                       const std::vector<const AdamWSettings*>& settings) {
  const int64_t count = static_cast<int64_t>(known.size());
  require(static_cast<int64_t>(grads.size()) == count, "grads", static_cast<int64_t>(grads.size()), "as many as tensors");
  require(static_cast<int64_t>(settings.size()) == count, "settings", static_cast<int64_t>(settings.size()), "as many as tensors");
  std::vector<AdamWTensor> tensors;
  tensors.reserve(known.size());
  for (size_t i = 0; i < known.size(); ++i) {
    const AdamWSettings& s = *settings[i];
    AdamWTensor t = *known[i];
    t.grad = pointer(grads[i]);
    t.lr = s.lr, t.beta1 = s.beta1, t.beta2 = s.beta2, t.eps = s.eps, t.weight_decay = s.weight_decay;
    t.lr_at = static_cast<const float*>(pointer(s.lr_at));
    tensors.push_back(t);
  }
  return tensors;
}

bool masked_adamw_(const std::vector<const AdamWTensor*>& known, const std::vector<Address>& grads,
                   const std::vector<const AdamWSettings*>& settings, bool maximize, double inv_scale, bool skip_nonfinite, int threads) {
  const std::vector<AdamWTensor> tensors = adamw_tensors(known, grads, settings);
  for (const AdamWTensor& t : tensors)
    if (t.weight) require_walkable(t.layout);  // each time: who edits an index in place is found out
  const StepOutcome outcome = cpu_ops().masked_adamw_(tensors.data(), static_cast<int64_t>(tensors.size()), maximize, inv_scale,
                                                      skip_nonfinite, thread_count(threads));
  for (const AdamWTensor& t : tensors)
    if (outcome == kOutside && t.weight) require_inside(t.layout);
  return outcome == kNonfinite;
}

// grad_scale, found_inf: addresses of one float each, or 0.
void masked_adamw_cuda_(const std::vector<const AdamWTensor*>& known, const std::vector<Address>& grads,
                        const std::vector<const AdamWSettings*>& settings, bool maximize, Address grad_scale, Address found_inf,
                        bool skip_nonfinite, Address stream) {
  require(found_inf || !skip_nonfinite, "found_inf", 0, "an address with skip_nonfinite");
#if SFT_CUDA
  cuda::masked_adamw_(adamw_tensors(known, grads, settings), maximize, static_cast<const float*>(pointer(grad_scale)),
                      static_cast<float*>(pointer(found_inf)), skip_nonfinite, stream);
#else
  (void)known, (void)grads, (void)settings, (void)maximize, (void)grad_scale, (void)stream;
  throw std::runtime_error("masked_adamw_cuda_: this build has no CUDA: " SFT_CUDA_REASON);
#endif
}

Activation activation_code(int code) {
  require(code >= kSilu && code <= kRelu, "activation", code, "0 (silu), 1 (gelu), 2 (gelu_tanh) or 3 (relu)");
  return static_cast<Activation>(code);
}

Rows matrix_rows(Address data, int64_t stride) { return Rows{pointer(data), stride}; }

void activation(Address input, int64_t input_stride, int code, int64_t rows, int64_t columns, int act, Address output, int threads) {
  require(rows >= 0, "rows", rows, "non-negative");
  require(columns >= 0, "columns", columns, "non-negative");
  cpu_ops().activation(matrix_rows(input, input_stride), dtype(code, "dtype"), rows, columns, activation_code(act), pointer(output),
                       thread_count(threads));
}

void activation_backward(Address grad_output, int64_t grad_output_stride, Address input, int64_t input_stride, int code, int64_t rows,
                         int64_t columns, int act, Address grad_input, int threads) {
  require(rows >= 0, "rows", rows, "non-negative");
  require(columns >= 0, "columns", columns, "non-negative");
  cpu_ops().activation_backward(matrix_rows(grad_output, grad_output_stride), matrix_rows(input, input_stride), dtype(code, "dtype"), rows,
                                columns, activation_code(act), pointer(grad_input), thread_count(threads));
}

void gated_product(Address gate, int64_t gate_stride, Address up, int64_t up_stride, int code, int64_t rows, int64_t columns, int act,
                   Address output, int threads) {
  require(rows >= 0, "rows", rows, "non-negative");
  require(columns >= 0, "columns", columns, "non-negative");
  cpu_ops().gated_product(matrix_rows(gate, gate_stride), matrix_rows(up, up_stride), dtype(code, "dtype"), rows, columns,
                          activation_code(act), pointer(output), thread_count(threads));
}

void gated_product_backward(Address grad_output, int64_t grad_output_stride, Address gate, int64_t gate_stride, Address up,
                            int64_t up_stride, int code, int64_t rows, int64_t columns, int act, Address grad_gate, Address grad_up,
                            int threads) {
  require(rows >= 0, "rows", rows, "non-negative");
  require(columns >= 0, "columns", columns, "non-negative");
  cpu_ops().gated_product_backward(matrix_rows(grad_output, grad_output_stride), matrix_rows(gate, gate_stride),
                                   matrix_rows(up, up_stride), dtype(code, "dtype"), rows, columns, activation_code(act),
                                   pointer(grad_gate), pointer(grad_up), thread_count(threads));
}

NormOperands norm_operands(Address input, int64_t input_stride, int input_dtype, Address weight, int weight_dtype, int64_t rows,
                           int64_t columns, double offset, int wide) {
  require(rows >= 0, "rows", rows, "non-negative");
  require(columns >= 0, "columns", columns, "non-negative");
  require(wide == kFloat32 || wide == kFloat64, "rstd_dtype", wide, "0 (float32) or 1 (float64)");
  return NormOperands{matrix_rows(input, input_stride), dtype(input_dtype, "input_dtype"), pointer(weight),
                      dtype(weight_dtype, "weight_dtype"), rows, columns, offset, static_cast<DType>(wide)};
}

void rms_norm(Address input, int64_t input_stride, int input_dtype, Address weight, int weight_dtype, int64_t rows, int64_t columns,
              double eps, double offset, Address output, int output_dtype, Address rstd, int rstd_dtype, int threads) {
  const NormOperands operands = norm_operands(input, input_stride, input_dtype, weight, weight_dtype, rows, columns, offset, rstd_dtype);
  cpu_ops().rms_norm(operands, eps, pointer(output), dtype(output_dtype, "output_dtype"), pointer(rstd), thread_count(threads));
}

void rms_norm_backward(Address grad_output, int64_t grad_output_stride, int grad_output_dtype, Address input, int64_t input_stride,
                       int input_dtype, Address rstd, int rstd_dtype, Address weight, int weight_dtype, int64_t rows, int64_t columns,
                       double offset, Address grad_input, int threads) {
  const NormOperands operands = norm_operands(input, input_stride, input_dtype, weight, weight_dtype, rows, columns, offset, rstd_dtype);
  cpu_ops().rms_norm_backward(operands, matrix_rows(grad_output, grad_output_stride), dtype(grad_output_dtype, "grad_output_dtype"),
                              pointer(rstd), pointer(grad_input), thread_count(threads));
}

// relu: address of what ReLU of the input is written to, or 0.
void positive_bits(Address input, int code, int64_t count, Address bits, Address relu, int threads) {
  require(count >= 0, "count", count, "non-negative");
  cpu_ops().positive_bits(pointer(input), dtype(code, "dtype"), count, static_cast<uint8_t*>(pointer(bits)), pointer(relu),
                          thread_count(threads));
}

void where_bits(Address grad, int code, int64_t count, Address bits, double scale, Address output, int threads) {
  require(count >= 0, "count", count, "non-negative");
  cpu_ops().where_bits(pointer(grad), dtype(code, "dtype"), count, static_cast<const uint8_t*>(pointer(bits)), scale, pointer(output),
                       thread_count(threads));
}

ChannelOperands channel_operands(int64_t outer, int64_t channels, int64_t inner, Channels variance, Channels weight, double eps) {
  require(outer >= 0, "outer", outer, "non-negative");
  require(channels >= 0, "channels", channels, "non-negative");
  require(inner >= 0, "inner", inner, "non-negative");
  return ChannelOperands{outer, channels, inner, variance, weight, eps};
}

// weight, bias, bits: an address, or 0.
void batch_norm_(Address input, int code, int64_t outer, int64_t channels, int64_t inner, Address mean, int mean_dtype, Address variance,
                 int variance_dtype, Address weight, int weight_dtype, Address bias, int bias_dtype, double eps, Address bits, int threads) {
  const ChannelOperands operands = channel_operands(outer, channels, inner, {pointer(variance), dtype(variance_dtype, "variance_dtype")},
                                                    {pointer(weight), dtype(weight_dtype, "weight_dtype")}, eps);
  cpu_ops().batch_norm_(operands, {pointer(mean), dtype(mean_dtype, "mean_dtype")}, {pointer(bias), dtype(bias_dtype, "bias_dtype")},
                        pointer(input), dtype(code, "dtype"), static_cast<uint8_t*>(pointer(bits)), thread_count(threads));
}

// weight, positive: an address, or 0.
void batch_norm_backward(Address grad_output, int code, int64_t outer, int64_t channels, int64_t inner, Address variance, int variance_dtype,
                         Address weight, int weight_dtype, double eps, Address positive, Address grad_input, int threads) {
  const ChannelOperands operands = channel_operands(outer, channels, inner, {pointer(variance), dtype(variance_dtype, "variance_dtype")},
                                                    {pointer(weight), dtype(weight_dtype, "weight_dtype")}, eps);
  cpu_ops().batch_norm_backward(operands, pointer(grad_output), dtype(code, "dtype"), static_cast<const uint8_t*>(pointer(positive)),
                                pointer(grad_input), thread_count(threads));
}

using Pair = std::array<int64_t, 2>;

void max_pool(Address input, int code, int64_t planes, Pair size, Pair out_size, Pair kernel, Pair stride, Pair padding, Pair dilation,
              Address output, Address numbers, int threads) {
  require(planes >= 0, "planes", planes, "non-negative");
  for (int d = 0; d < 2; ++d) {
    require(size[d] >= 0, "size", size[d], "non-negative");
    require(out_size[d] >= 0, "out_size", out_size[d], "non-negative");
    require(kernel[d] > 0, "kernel", kernel[d], "positive");
    require(stride[d] > 0, "stride", stride[d], "positive");
    require(padding[d] >= 0, "padding", padding[d], "non-negative");
    require(dilation[d] > 0, "dilation", dilation[d], "positive");
  }
  require(kernel[0] * kernel[1] <= 256, "kernel", kernel[0] * kernel[1], "at most 256 elements");
  const PoolWindow window{{size[0], size[1]},
                          {out_size[0], out_size[1]},
                          {kernel[0], kernel[1]},
                          {stride[0], stride[1]},
                          {padding[0], padding[1]},
                          {dilation[0], dilation[1]}};
  cpu_ops().max_pool(pointer(input), dtype(code, "dtype"), planes, window, pointer(output), static_cast<uint8_t*>(pointer(numbers)),
                     thread_count(threads));
}

int64_t use_huge_pages_of(Address data, int64_t bytes) {
  require(bytes >= 0, "bytes", bytes, "non-negative");
  return use_huge_pages(pointer(data), bytes);
}

int64_t layout_position(const LayoutTuple& where, int64_t k) { return position(layout(where), k); }

py::dict build_info() {
  py::dict info;
  py::list architectures;
  std::istringstream names(SFT_CUDA_ARCHITECTURES);
  for (std::string name; names >> name;) architectures.append(name);
  info["version"] = SFT_VERSION;
  info["compiler"] = SFT_COMPILER;
  info["cpu_variants"] = cpu_variants();
  info["cpu_variant"] = cpu_variant();
  info["threads"] = thread_runtime();
  info["cuda"] = static_cast<bool>(SFT_CUDA);
  info["cuda_architectures"] = architectures;
  info["cuda_reason"] = SFT_CUDA_REASON;
  return info;
}

}  // namespace
}  // namespace sparse_ft

PYBIND11_MODULE(_C, m) {
  using namespace sparse_ft;
  using NoGil = py::call_guard<py::gil_scoped_release>;
  m.doc() = "The compiled kernels of sparse_ft. Tensors are passed as addresses: use sparse_ft.ops, which checks them.";
  m.def("gather_selected", &gather_selected, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg("first") = 0,
        NoGil());
  m.def("gather_selected_cuda", &gather_selected_cuda, NoGil());
  m.def("scatter_selected_", &scatter_selected_, NoGil());
  m.def("scatter_selected_cuda_", &scatter_selected_cuda_, NoGil());
  m.def("selected_wgrad", &selected_wgrad, NoGil());
  m.def("dense_product", &dense_product, NoGil());
  py::class_<AdamWSettings>(m, "AdamWSettings")
      .def(py::init([](double lr, double beta1, double beta2, double eps, double weight_decay, Address lr_at) {
        return AdamWSettings{lr, beta1, beta2, eps, weight_decay, lr_at};
      }));
  py::class_<AdamWTensor>(m, "AdamWTensor")
      .def(py::init(&adamw_tensor), py::kw_only(), py::arg("values"), py::arg("exp_avg"), py::arg("exp_avg_sq"), py::arg("step"),
           py::arg("count"), py::arg("dtype"), py::arg("seed") = -1, py::arg("correction") = 0, py::arg("exp_avg_absmax") = 0,
           py::arg("exp_avg_sq_absmax") = 0, py::arg("weight") = 0, py::arg("weight_dtype") = 0, py::arg("layout") = py::none());
  m.def("masked_adamw_", &masked_adamw_, NoGil());
  m.def("masked_adamw_cuda_", &masked_adamw_cuda_, NoGil());
  m.def("activation", &activation, NoGil());
  m.def("activation_backward", &activation_backward, NoGil());
  m.def("gated_product", &gated_product, NoGil());
  m.def("gated_product_backward", &gated_product_backward, NoGil());
  m.def("rms_norm", &rms_norm, NoGil());
  m.def("rms_norm_backward", &rms_norm_backward, NoGil());
  m.def("positive_bits", &positive_bits, NoGil());
  m.def("where_bits", &where_bits, NoGil());
  m.def("batch_norm_", &batch_norm_, NoGil());
  m.def("batch_norm_backward", &batch_norm_backward, NoGil());
  m.def("max_pool", &max_pool, NoGil());
  m.def("use_huge_pages", &use_huge_pages_of, NoGil());
  m.def("position", &layout_position, NoGil());
  m.def("set_cpu_variant", &set_cpu_variant);
  m.def("build_info", &build_info);
}
