// Attributes of Python's objects, read where they lie: a slot (`__slots__`) in 2 ns, a property that C
// computes without the way there, where Python's own takes 25. A step reads some twenty of each
// parameter.
#pragma once

#include <structmember.h>

#include "from_python.h"

namespace sparse_ft {

inline py::object existing(py::object found) {
  if (!found) throw py::error_already_set();
  return found;
}

inline py::object existing(PyObject* found) {
  return existing(py::reinterpret_steal<py::object>(found));
}

class Member {
 public:
  explicit Member(const char* name) : name_(PyUnicode_InternFromString(name)) {}

  PyObject* name() const { return name_; }

  // `object.name`, and what that raises.
  py::object of(py::handle object) {
    const Way& way = way_in(Py_TYPE(object.ptr()));
    if (way.get) return existing(way.get(object.ptr(), way.closure));
    if (way.offset)
      if (PyObject* const found = *slot(object, way)) return py::reinterpret_borrow<py::object>(found);
    return existing(PyObject_GetAttr(object.ptr(), name_));
  }

  bool is(py::handle object, PyObject* what) { return of(object).ptr() == what; }

  // `object.name = value`
  void set(py::handle object, py::handle value) {
    const Way& way = way_in(Py_TYPE(object.ptr()));
    if (way.offset) {
      PyObject** const at = slot(object, way);
      PyObject* const old = *at;
      *at = value.inc_ref().ptr();
      Py_XDECREF(old);  // last: it may run anything
    } else if (PyObject_SetAttr(object.ptr(), name_, value.ptr())) {
      throw py::error_already_set();
    }
  }

 private:
  // How instances of a type keep it: at an offset, or by a function; neither where Python has to know.
  struct Way {
    PyTypeObject* type;
    Py_ssize_t offset;
    getter get;
    void* closure;
  };

  static PyObject** slot(py::handle object, const Way& way) {
    return reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object.ptr()) + way.offset);
  }

  const Way& way_in(PyTypeObject* type) {
    for (const Way& way : ways_)
      if (way.type == type) return way;
    next_ = (next_ + 1) % kTypes;
    return ways_[next_] = found_way(type);
  }

  Way found_way(PyTypeObject* type) const {
    Py_INCREF(type);  // it lives on, so that no other gets its address
    Way way{type, 0, nullptr, nullptr};
    if (type->tp_getattro != PyObject_GenericGetAttr) return way;
    const auto of_type = py::reinterpret_steal<py::object>(
        PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name_));
    if (!of_type) {
      PyErr_Clear();
    } else if (Py_TYPE(of_type.ptr()) == &PyMemberDescr_Type) {
      const PyMemberDef* const member =
          reinterpret_cast<PyMemberDescrObject*>(of_type.ptr())->d_member;
      if (member->type == T_OBJECT_EX && !member->flags) way.offset = member->offset;
    } else if (Py_TYPE(of_type.ptr()) == &PyGetSetDescr_Type) {
      const PyGetSetDef* const computed =
          reinterpret_cast<PyGetSetDescrObject*>(of_type.ptr())->d_getset;
      way.get = computed->get;
      way.closure = computed->closure;
    }
    return way;
  }

  static constexpr int kTypes = 4;  // that are remembered: parameters, selections of each kind
  PyObject* const name_;
  Way ways_[kTypes] = {};
  int next_ = 0;
};

}  // namespace sparse_ft
