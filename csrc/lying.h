// Lying: the tensors that something was prepared of, by which Python asks at every step whether
// they lie where they lay. Seven take 0.2 us; their attributes, read one by one in Python, 3.
#pragma once

#include <utility>

#include "footprint.h"
#include "from_python.h"
#include "trail.h"

namespace sparse_ft {

// Whether the numbers of a tensor are the opposite of what lies in its memory.
inline bool is_negated(py::handle tensor) {
  static PyObject* const name = PyUnicode_InternFromString("is_neg");
  const py::object answer = result(tensor, name);
  if (!answer) throw py::error_already_set();
  return answer.is(py::handle(Py_True));
}

// Where a tensor is: (type, number) of its device as DLPack counts them.
using Place = std::pair<int32_t, int32_t>;
constexpr Place kNoPlace{0, 0};

inline Place place_of(py::handle tensor) {
  dlpack::View view;
  return read_view(tensor, view) ? Place{view.device_type, view.device_id} : kNoPlace;
}

constexpr int64_t kNowhere = -1;

class Lying {
 public:
  // Throws std::invalid_argument for what shows no memory.
  explicit Lying(const py::tuple& tensors) {
    dlpack::View view;
    for (const py::handle tensor : tensors) {
      if (!read_view(tensor, view)) throw std::invalid_argument("tensors: expected dense ones");
      footprints_.add(view);
    }
    if (!footprints_.count()) throw std::invalid_argument("tensors: expected at least one");
    is_negated_ = is_negated(tensors[0]);
    place_ = place_of(tensors[0]);
  }

  Place place() const { return place_; }

  void note(Trail& trail) const {
    trail.note(this, sizeof *this);
    footprints_.note(trail);
  }

  // Whether these are as those were: as many, in the same order.
  bool holds(const std::vector<py::object>& tensors) const {
    if (tensors.size() != footprints_.count()) return false;
    dlpack::View view;
    for (size_t i = 0; i < tensors.size(); ++i)
      if (!read_view(tensors[i], view) || !footprints_.is_of(i, view)) return false;
    return is_negated(tensors[0]) == is_negated_;
  }

  bool holds(const py::tuple& tensors) const {
    std::vector<py::object> listed;
    for (const py::handle tensor : tensors)
      listed.push_back(py::reinterpret_borrow<py::object>(tensor));
    return holds(listed);
  }

  // Of a tensor whose elements lie as those of the first one, on its device; else kNowhere.
  int64_t address_like_first(py::handle tensor) const {
    dlpack::View view;
    if (!read_view(tensor, view) || !footprints_.lies_alike(0, view)) return kNowhere;
    const char* const data = dlpack::data_of(view);
    if (!data && !footprints_.is_empty(0)) return kNowhere;  // zeros without memory
    if (is_negated(tensor)) return kNowhere;
    return reinterpret_cast<int64_t>(data);
  }

 private:
  Footprints footprints_;
  bool is_negated_;
  Place place_;  // of the first one
};

using KnownRows = std::vector<const Lying*>;  // null: a row that is new

inline void check_rows(const KnownRows& known, const py::list& given) {
  if (known.size() == given.size()) return;
  throw std::invalid_argument("rows: expected as many as are known");
}

// The numbers of the rows whose tensors do not lie as it is known of them.
inline std::vector<size_t> rows_that_moved(const KnownRows& known, const py::list& rows) {
  check_rows(known, rows);
  std::vector<size_t> moved;
  for (size_t i = 0; i < known.size(); ++i) {
    const py::handle row = PyList_GET_ITEM(rows.ptr(), i);
    if (!PyTuple_Check(row.ptr())) throw py::type_error("rows: expected tuples");
    if (!known[i] || !known[i]->holds(py::reinterpret_borrow<py::tuple>(row))) moved.push_back(i);
  }
  return moved;
}

// Where the gradient of each row's first tensor lies; kNowhere for one that does not lie as that
// tensor does, or is no `plain` tensor.
inline std::vector<int64_t> gradient_addresses(const KnownRows& known, const py::list& gradients,
                                               py::handle plain) {
  check_rows(known, gradients);
  std::vector<int64_t> addresses(known.size(), kNowhere);
  for (size_t i = 0; i < known.size(); ++i) {
    const py::handle gradient = PyList_GET_ITEM(gradients.ptr(), i);
    const bool is_plain = py::type::handle_of(gradient).is(plain);
    if (is_plain && known[i]) addresses[i] = known[i]->address_like_first(gradient);
  }
  return addresses;
}

inline void define_lying(py::module_& m) {
  py::class_<Lying>(m, "Lying").def(py::init<const py::tuple&>());
  m.def("rows_that_moved", &rows_that_moved);
  m.def("gradient_addresses", &gradient_addresses);
}

}  // namespace sparse_ft
