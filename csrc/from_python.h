// How Python's arguments become those of the ops. Tensors are read through DLPack where their type
// offers it, else by the names of their attributes, so that nothing here needs torch: not its headers,
// not its libraries, not to be imported.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "checks.h"
#include "cpu/ops.h"
#include "dlpack.h"

namespace sparse_ft {

namespace py = pybind11;

struct Names {
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* stride = PyUnicode_InternFromString("stride");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* is_cuda = PyUnicode_InternFromString("is_cuda");
  PyObject* kind = PyUnicode_InternFromString("kind");
  PyObject* index = PyUnicode_InternFromString("index");
  PyObject* block_h = PyUnicode_InternFromString("block_h");
  PyObject* block_w = PyUnicode_InternFromString("block_w");
};

inline const Names& names() {
  static const Names* const names = new Names;  // as long as the process
  return *names;
}

inline py::object attribute(py::handle of, PyObject* name) {
  return py::reinterpret_steal<py::object>(PyObject_GetAttr(of.ptr(), name));
}

inline py::object result(py::handle of, PyObject* method) {
  return py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(of.ptr(), method));
}

// dtypes are told by their names once, and from then on by where they live.
inline DType read_dtype(py::handle dtype) {
  static PyObject* known[kOtherDType] = {};
  for (int code = 0; code < kOtherDType; ++code)
    if (known[code] == dtype.ptr()) return static_cast<DType>(code);
  const std::string name = py::str(dtype);
  for (int code = 0; code < kOtherDType; ++code) {
    if (name != kDTypeNames[code]) continue;
    known[code] = py::object(py::reinterpret_borrow<py::object>(dtype)).release().ptr();
    return static_cast<DType>(code);
  }
  return kOtherDType;
}

// What follows from sizes and strides.
inline void count_elements(Tensor& t) {
  t.count = 1;
  t.in_order = true;
  for (int d = t.dim - 1; d >= 0; --d) {
    if (t.size[d] != 1) t.in_order &= t.stride[d] == t.count;
    t.count *= t.size[d];
  }
  t.in_order |= t.count == 0;
}

// Null where a type offers none. Types are few: the first ones are remembered, and live on.
inline const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
  struct Known {
    PyTypeObject* type;
    const dlpack::ExchangeApi* api;
  };
  static Known known[8] = {};
  Known* free = nullptr;
  for (Known& each : known) {
    if (each.type == type) return each.api;
    if (!each.type && !free) free = &each;
  }
  const auto owner = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type));
  const py::object capsule = py::getattr(owner, dlpack::kAttribute, py::none());
  const dlpack::ExchangeApi* api = nullptr;
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsule))
    api = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
  if (api && (api->major != 1 || !api->view_of)) api = nullptr;
  if (free) *free = {reinterpret_cast<PyTypeObject*>(owner.inc_ref().ptr()), api};
  return api;
}

// False where the type offers no view, or this tensor has none.
inline bool read_view(py::handle from, dlpack::View& view) {
  const dlpack::ExchangeApi* api = exchange_api(Py_TYPE(from.ptr()));
  if (api && !api->view_of(from.ptr(), &view)) return true;
  PyErr_Clear();
  return false;
}

inline bool read_view(py::handle from, Tensor& t) {
  dlpack::View view;
  if (!read_view(from, view) || view.dim > kMostDims) return false;
  t.data = dlpack::data_of(view);
  t.dtype = dlpack::dtype_of(view);
  t.device = dlpack::device_of(view);
  t.dim = view.dim;
  for (int d = 0; d < view.dim; ++d) {
    t.size[d] = view.shape[d];
    t.stride[d] = view.strides[d];
  }
  count_elements(t);
  return true;
}

// False where these are no tuples of as many integers.
inline bool read_extents(py::handle shape, py::handle stride, Tensor& t) {
  if (!PyTuple_Check(shape.ptr()) || !PyTuple_Check(stride.ptr())) return false;
  const Py_ssize_t dim = PyTuple_GET_SIZE(shape.ptr());
  if (dim > kMostDims || PyTuple_GET_SIZE(stride.ptr()) != dim) return false;
  t.dim = static_cast<int>(dim);
  for (Py_ssize_t d = 0; d < dim; ++d) {
    t.size[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), d));
    t.stride[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(stride.ptr(), d));
  }
  count_elements(t);
  return true;
}

inline bool read_attributes(py::handle from, Tensor& t) {
  const Names& name = names();
  const py::object dtype = attribute(from, name.dtype);
  const py::object shape = dtype ? attribute(from, name.shape) : py::object();
  const py::object stride = shape ? result(from, name.stride) : py::object();
  const py::object data = stride ? result(from, name.data_ptr) : py::object();
  if (!data || !read_extents(shape, stride, t)) return false;
  t.data = PyLong_AsVoidPtr(data.ptr());
  t.dtype = read_dtype(dtype);
  const auto holds = [&](PyObject* what) { return attribute(from, what).is(py::handle(Py_True)); };
  t.device = holds(name.is_cpu) ? kHost : holds(name.is_cuda) ? kCuda : kElsewhere;
  return !PyErr_Occurred();
}

// What is no dense tensor is refused later, by the name of its argument.
inline void read_tensor(py::handle from, Tensor& t) {
  t.name = "index";
  t.other = nullptr;
  if (read_view(from, t) || read_attributes(from, t)) return;
  PyErr_Clear();
  t.other = Py_TYPE(from.ptr())->tp_name;
}

inline void leave_out(Tensor& t) {
  t.other = nullptr;
  t.data = nullptr;
  t.device = kAbsent;
  t.dim = 0;
  t.count = 0;
}

// One of a few words.
template <class E, size_t N>
E read_word(py::handle from, const char* what, const char* const (&words)[N]) {
  for (size_t i = 0; PyUnicode_Check(from.ptr()) && i < N; ++i)
    if (!PyUnicode_CompareWithASCIIString(from.ptr(), words[i])) return static_cast<E>(i);
  std::string message = std::string(what) + ": expected one of";
  for (size_t i = 0; i < N; ++i) message += (i ? ", " : " ") + std::string(words[i]);
  throw py::value_error(message + ", got " + std::string(py::repr(from)));
}

[[noreturn]] inline void refuse_selection(py::handle from) {
  PyErr_Clear();
  throw py::type_error("where: expected (kind, index, block_h, block_w), got " +
                       std::string(py::repr(from)));
}

// A tuple (kind, index, block_h, block_w), or what has these as attributes. `owner` holds the index.
inline void read_selection(py::handle from, Selection& selection, py::object& owner) {
  const Names& name = names();
  PyObject* const members[] = {name.kind, name.index, name.block_h, name.block_w};
  py::object found[4];
  const bool is_tuple = PyTuple_Check(from.ptr());  // perhaps with names
  for (Py_ssize_t i = 0; i < 4; ++i) {
    if (is_tuple && i < PyTuple_GET_SIZE(from.ptr()))
      found[i] = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(from.ptr(), i));
    else
      found[i] = attribute(from, members[i]);
    if (!found[i]) refuse_selection(from);
  }
  selection.kind = read_word<Kind>(found[0], "kind", kKindNames);
  read_tensor(found[1], selection.index);
  selection.block_h = PyLong_AsLongLong(found[2].ptr());
  selection.block_w = PyLong_AsLongLong(found[3].ptr());
  if (PyErr_Occurred()) refuse_selection(from);
  owner = std::move(found[1]);
}

}  // namespace sparse_ft

namespace pybind11::detail {

#define SFT_CASTER(Type, read)                       \
  template <>                                        \
  struct type_caster<sparse_ft::Type> {              \
    PYBIND11_TYPE_CASTER(sparse_ft::Type, const_name(#Type)); \
    bool load(handle from, bool) {                   \
      using namespace sparse_ft;                     \
      read;                                          \
      return true;                                   \
    }                                                \
  };

SFT_CASTER(Tensor, read_tensor(from, value))
SFT_CASTER(MaybeTensor, from.is_none() ? leave_out(value) : read_tensor(from, value))
SFT_CASTER(Activation, value = read_word<Activation>(from, "activation", kActivationNames))
SFT_CASTER(ScatterMode, value = read_word<ScatterMode>(from, "mode", kScatterModeNames))

#undef SFT_CASTER

template <>
struct type_caster<sparse_ft::Selection> {
  PYBIND11_TYPE_CASTER(sparse_ft::Selection, const_name("Selection"));
  bool load(handle from, bool) {
    sparse_ft::read_selection(from, value, owner_);
    return true;
  }

 private:
  object owner_;  // until the call returns: whoever holds the layout may drop its index meanwhile
};

}  // namespace pybind11::detail
