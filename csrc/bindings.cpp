// The module sparse_ft._C: every op of the tables, under its name.
#include <optional>
#include <sstream>

#include "build_config.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"
#include "cpu/variants.h"
#include "cuda/ops.h"
#include "from_python.h"
#include "gathering.h"

namespace sparse_ft {
namespace {

// "In input, int64_t first" -> {"input", "first"}; they live as long as the process.
const std::vector<std::string>& argument_names(const char* declared) {
  auto* names = new std::vector<std::string>;
  std::istringstream list(declared);
  for (std::string one; std::getline(list, one, ',');)
    names->push_back(one.substr(one.rfind(' ') + 1));
  return *names;
}

// Gives what was read its name, and refuses what no kernel on `device` can follow.
template <class T>
void accept(T& argument, const std::string& name, Device device) {
  if constexpr (std::is_base_of_v<Tensor, T>) {
    argument.name = name.c_str();
    if constexpr (std::is_same_v<T, MaybeTensor>)
      if (!is_given(argument)) return;
    check_present(argument, device);
  } else if constexpr (std::is_same_v<T, Selection>) {
    check_present(argument.index, device);
  } else if constexpr (std::is_same_v<T, int>) {
    check_range("threads", argument, 1);
  }
}

template <class Argument>
using Read = std::remove_cv_t<std::remove_reference_t<Argument>>;

// op(): the function to call, which the chosen variant decides.
template <class Result, class... Arguments, class Op>
void define(py::module_& m, const char* name, const char* declared, Device device, Op op,
            Result (*)(Arguments...)) {
  const std::vector<std::string>& names = argument_names(declared);
  const auto call = [op, device, &names](Read<Arguments>&... arguments) {
    auto next = names.begin();
    (accept(arguments, *next++, device), ...);
    const py::gil_scoped_release no_gil;
    return op()(arguments...);
  };
  m.def(name, call, declared);
}

#if SFT_CUDA
constexpr auto why_not_cuda = &why_not_on_cuda_device;
#define SFT_DEFINE_CUDA(result, name, ...) \
  define(m, #name, #__VA_ARGS__ ", uintptr_t stream", kCuda, [] { return &name; }, &name);
#else
void refuse_cuda(const char* name) {
  throw std::runtime_error(std::string(name) + ": this build has no CUDA: " SFT_CUDA_REASON);
}
#define SFT_DEFINE_CUDA(result, name, ...) m.def(#name, [](const py::args&) { refuse_cuda(#name); });
std::string why_not_cuda(int) { return "this build has no CUDA: " SFT_CUDA_REASON; }
#endif

#define SFT_DEFINE(result, name, ...)                          \
  define(m, #name, #__VA_ARGS__ ", int threads", kHost,        \
         [] { return cpu_ops().name; }, &baseline::name);

KnownTensor known(Tensor& values, Tensor& exp_avg, Tensor& exp_avg_sq, Tensor& step, int64_t seed,
                  MaybeTensor& correction, MaybeTensor& exp_avg_absmax,
                  MaybeTensor& exp_avg_sq_absmax, MaybeTensor& generation, MaybeTensor& births,
                  MaybeTensor& factor, MaybeTensor& origin, MaybeTensor& weight,
                  std::optional<Selection>& layout) {
  values.name = "values";
  exp_avg.name = "exp_avg";
  exp_avg_sq.name = "exp_avg_sq";
  step.name = "step";
  correction.name = "correction";
  exp_avg_absmax.name = "exp_avg_absmax";
  exp_avg_sq_absmax.name = "exp_avg_sq_absmax";
  generation.name = "generation";
  births.name = "births";
  factor.name = "factor";
  origin.name = "origin";
  weight.name = "weight";
  return known_tensor(values, exp_avg, exp_avg_sq, step, seed, correction, exp_avg_absmax,
                      exp_avg_sq_absmax, generation, births, factor, origin, weight, layout ? &*layout : nullptr);
}

int64_t huge_pages(uintptr_t data, int64_t bytes) {
  check_range("bytes", bytes, 0);
  return use_huge_pages(reinterpret_cast<void*>(data), bytes);
}

// Of value k of a selection in a matrix of that shape.
int64_t position_of(const Selection& where, Pair shape, int64_t k) {
  check_present(where.index, kHost);
  return position(layout_of(where, shape[0], shape[1]), k);
}

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
  py::options options;
  options.disable_function_signatures();  // the declarations of the table tell more
  m.doc() = "The compiled kernels of sparse_ft. Use sparse_ft.ops, which serves every tensor.";
  static PyObject* const unserved = py::exception<Unserved>(m, "Unserved", PyExc_TypeError).release().ptr();
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Unserved& error) {
      py::set_error(unserved, error.what());
    } catch (const WrongType& error) {
      py::set_error(PyExc_TypeError, error.what());
    }
  });
  py::class_<AdamWSettings>(m, "AdamWSettings")
      .def(py::init<double, double, double, double, double, uintptr_t>());
  py::class_<KnownTensor>(m, "AdamWTensor")
      .def(py::init(&known), py::kw_only(), py::arg("values"), py::arg("exp_avg"),
           py::arg("exp_avg_sq"), py::arg("step"), py::arg("seed") = -1,
           py::arg("correction") = py::none(), py::arg("exp_avg_absmax") = py::none(),
           py::arg("exp_avg_sq_absmax") = py::none(), py::arg("generation") = py::none(),
           py::arg("births") = py::none(), py::arg("factor") = py::none(),
           py::arg("origin") = py::none(), py::arg("weight") = py::none(),
           py::arg("layout") = py::none());
  SFT_CPU_OPS(SFT_DEFINE)
  SFT_CUDA_OPS(SFT_DEFINE_CUDA)
  m.def("use_huge_pages", &huge_pages, py::call_guard<py::gil_scoped_release>());
  m.def("position", &position_of);
  m.def("why_not_on_cuda_device", why_not_cuda);
  define_lying(m);
  define_rows(m);
  m.def("set_cpu_variant", &set_cpu_variant);
  m.def("build_info", &build_info);
}
