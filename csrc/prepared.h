// The parameters that Python has prepared for a step (sparse_ft/optim), looked through at every
// step: in one pass of 1.9 us a parameter where passes in Python took 2.8. Whatever is otherwise than
// it was is left to Python, which prepares it anew.
#pragma once

#include "lying.h"

namespace sparse_ft {

// Of what a row is made of in Python.
struct RowNames {
  PyObject* grad = PyUnicode_InternFromString("grad");
  PyObject* version = PyUnicode_InternFromString("_version");
  // of a `Prepared`
  PyObject* parameter = PyUnicode_InternFromString("parameter");
  PyObject* state = PyUnicode_InternFromString("state");
  PyObject* seed = PyUnicode_InternFromString("seed");
  PyObject* settings = PyUnicode_InternFromString("settings");
  PyObject* to_origin = PyUnicode_InternFromString("to_origin");
  PyObject* lying = PyUnicode_InternFromString("lying");
  PyObject* old_seed = PyUnicode_InternFromString("_seed");
  PyObject* old_selection = PyUnicode_InternFromString("_selection");
  PyObject* old_index_version = PyUnicode_InternFromString("_index_version");
  // of a module that owns values, and of its state
  PyObject* parameters = PyUnicode_InternFromString("_parameters");
  PyObject* values = PyUnicode_InternFromString("values");
  PyObject* has_cache = PyUnicode_InternFromString("has_cache");
  PyObject* weight = PyUnicode_InternFromString("_weight");
  PyObject* weight_or_none = PyUnicode_InternFromString("_weight_or_none");
  PyObject* of_owner = PyUnicode_InternFromString("_sparse_ft_state");
  PyObject* selection = PyUnicode_InternFromString("selection");
  PyObject* index = PyUnicode_InternFromString("index");
  PyObject* tracked = PyUnicode_InternFromString("tracked");
  PyObject* factor = PyUnicode_InternFromString("factor");
};

inline const RowNames& row_names() {
  static const RowNames* const names = new RowNames;  // as long as the process
  return *names;
}

inline py::object existing(py::object found) {
  if (!found) throw py::error_already_set();
  return found;
}

inline py::object member(py::handle of, PyObject* name) { return existing(attribute(of, name)); }

inline py::object call_method(py::handle of, PyObject* name) { return existing(result(of, name)); }

inline bool is_equal(py::handle a, py::handle b) {
  const int answer = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
  if (answer < 0) throw py::error_already_set();
  return answer;
}

// Null where there is none.
inline py::object item_of(py::handle dict, py::handle key) {
  if (!PyDict_Check(dict.ptr())) return {};
  PyObject* const found = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return py::reinterpret_borrow<py::object>(found);
}

// As Python's id().
inline py::object id_of(py::handle object) {
  return existing(py::reinterpret_steal<py::object>(PyLong_FromVoidPtr(object.ptr())));
}

constexpr int64_t kChanged = -2;  // beside kNowhere: Python has to prepare it

// What a step writes, and where each gradient lies.
class Looking {
 public:
  // row_type: of the rows that are looked at. plain: the type of a gradient.
  Looking(py::handle row_type, py::handle plain) : row_type_(row_type), plain_(plain) {}

  // The address of `grad`, the gradient of `row`, whose tensors lie where they lay; kNowhere for one
  // that does not lie as its parameter, kChanged for a row that is not as it was. module: null for a
  // parameter that trains whole; otherwise the step writes its weight, too.
  int64_t at(py::handle row, py::handle module, const py::object& weight, py::handle grad) {
    if (!find_tensors(row) || (module && !find_owned(row, module, weight))) return kChanged;
    if (!lying_->holds(tensors_)) return kChanged;
    return py::type::handle_of(grad).is(plain_) ? lying_->address_like_first(grad) : kNowhere;
  }

  // Of the row that was looked at last: what a step changes of it, and where it is.
  void append_written(py::list& written) const {
    for (size_t i = 0; i < num_written_; ++i) written.append(tensors_[i]);
  }
  Place place() const { return lying_->place(); }

  bool is_row(py::handle row) const { return py::type::handle_of(row).is(row_type_); }

 private:
  // `Prepared.tensors`: what the row was prepared of, as it is now, what a step changes first. False
  // where the row is new, or something else has changed that it was prepared of.
  bool find_tensors(py::handle row) {
    const RowNames& name = row_names();
    if (!is_row(row) || !member(row, name.to_origin).is(py::handle(Py_False))) return false;
    const py::object lying = member(row, name.lying);
    if (lying.is_none() || !read_lying_.load(lying, false)) return false;
    lying_ = py::detail::cast_op<const Lying*>(read_lying_);
    if (!is_equal(member(row, name.seed), member(row, name.old_seed))) return false;
    tensors_.clear();
    tensors_.push_back(member(row, name.parameter));
    const py::object state = member(row, name.state);
    PyObject *key, *tensor;
    Py_ssize_t at = 0;
    if (!PyDict_Check(state.ptr())) throw py::type_error("state: expected a dict");
    while (PyDict_Next(state.ptr(), &at, &key, &tensor))
      tensors_.push_back(py::reinterpret_borrow<py::object>(tensor));
    num_written_ = tensors_.size();
    return true;
  }

  bool find_owned(py::handle row, py::handle module, const py::object& weight) {
    const RowNames& name = row_names();
    const py::object of_owner = member(module, name.of_owner);
    const py::object selection = member(of_owner, name.selection);
    if (!selection.is(member(row, name.old_selection))) return false;
    const py::object version = member(member(of_owner, name.tracked), name.version);
    if (!is_equal(version, member(row, name.old_index_version))) return false;
    tensors_.push_back(weight);
    ++num_written_;
    tensors_.push_back(member(selection, name.index));
    const py::object factor = member(of_owner, name.factor);
    if (!factor.is_none()) tensors_.push_back(factor);
    return true;
  }

  const py::handle row_type_, plain_;
  py::detail::make_caster<Lying> read_lying_;  // made once: it looks up its type by name
  const Lying* lying_ = nullptr;
  std::vector<py::object> tensors_;  // of the row that is looked at
  size_t num_written_ = 0;
};

// Of each row what `Looking.at` tells, and in `written` what a step changes of those that are as they
// were. modules: of the first ones, whose weights the step writes.
inline std::vector<int64_t> look_at_rows(py::handle row_type, py::handle plain,
                                         const py::list& rows, const py::list& modules,
                                         py::list written) {
  if (modules.size() > rows.size())
    throw std::invalid_argument("modules: expected at most one a row");
  Looking looking(row_type, plain);
  std::vector<int64_t> addresses;
  addresses.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const py::object row = rows[i];
    const py::object module = i < modules.size() ? py::object(modules[i]) : py::object();
    const py::object weight = module ? call_method(module, row_names().weight) : py::object();
    const py::object grad = member(member(row, row_names().parameter), row_names().grad);
    addresses.push_back(looking.at(row, module, weight, grad));
    if (addresses.back() != kChanged) looking.append_written(written);
  }
  return addresses;
}

// What a step is about, lists of a `Batch` in Python. at: where the gradients lie.
struct Stepping {
  py::list linked, modules, linked_at, others, others_at, written;

  explicit Stepping(py::handle batch)
      : linked(batch.attr("linked")),
        modules(batch.attr("owners")),
        linked_at(batch.attr("linked_at")),
        others(batch.attr("others")),
        others_at(batch.attr("others_at")),
        written(batch.attr("written")) {}
};

// The parameters of one optimiser as they are found in its groups. What Python's `Gathered._add` would
// do for each of them is done here for those of which nothing has changed.
class Gathering {
 public:
  // prepared: {id of a parameter: row}. state: {parameter: {name: tensor}}. owners: {id of values:
  // references to the modules that held them}.
  Gathering(Looking& looking, const py::dict& prepared, const py::dict& state,
            const py::dict& owners)
      : looking_(looking), prepared_(prepared), state_(state), owners_(owners) {}

  // Whether `parameter`, which has a gradient, is a row of `to` now; otherwise Python has to look.
  bool add(const py::object& parameter, const py::object& grad, const Place place,
           py::handle settings, Stepping& to) {
    const py::object row = row_of(parameter);
    py::object module, weight;
    if (!row || !find_module(parameter, module, weight)) return false;
    const int64_t address = looking_.at(row, module, weight, grad);
    if (address == kChanged || address == kNowhere || looking_.place() != place) return false;
    if (PyObject_SetAttr(row.ptr(), row_names().settings, settings.ptr()))
      throw py::error_already_set();
    looking_.append_written(to.written);
    (module ? to.linked : to.others).append(row);
    (module ? to.linked_at : to.others_at).append(address);
    if (module) to.modules.append(module);
    return true;
  }

 private:
  // Null where it is new or has another state.
  py::object row_of(const py::object& parameter) const {
    const RowNames& name = row_names();
    const py::object row = item_of(prepared_, id_of(parameter));
    if (!row || !looking_.is_row(row) || !member(row, name.seed).is_none()) return {};
    const py::object state = item_of(state_, parameter);
    return state && member(row, name.state).is(state) ? row : py::object();
  }

  // The module whose weight the step writes through, and that; null for a parameter that no module
  // owns. False where Python must find out.
  bool find_module(const py::object& parameter, py::object& module, py::object& weight) const {
    const RowNames& name = row_names();
    const py::object held_by = item_of(owners_, id_of(parameter));
    if (!held_by) return true;
    if (!PyTuple_Check(held_by.ptr()) || PyTuple_GET_SIZE(held_by.ptr()) != 1) return false;
    const py::handle reference = PyTuple_GET_ITEM(held_by.ptr(), 0);
    module = existing(py::reinterpret_steal<py::object>(PyObject_CallNoArgs(reference.ptr())));
    if (module.is_none()) return false;
    const py::object values = item_of(member(module, name.parameters), name.values);
    if (!values || !values.is(parameter)) return false;
    if (!member(module, name.has_cache).is(py::handle(Py_True))) return false;
    weight = call_method(module, name.weight_or_none);
    return !weight.is_none();
  }

  Looking& looking_;
  const py::dict &prepared_, &state_, &owners_;
};

// Of `parameters` those that have a gradient on the device of `first` and are as they were go to
// `batch`. Returns the others, which Python has to look at.
inline py::list add_rows(py::handle row_type, const py::dict& prepared, const py::dict& state,
                         const py::dict& owners, const py::list& parameters,
                         const py::object& first, py::handle settings, py::handle batch,
                         py::handle plain) {
  const Place place = place_of(first);
  if (place == kNoPlace) return parameters;
  Looking looking(row_type, plain);
  Gathering gathering(looking, prepared, state, owners);
  Stepping to(batch);
  py::list left;
  for (const py::handle each : parameters) {
    const auto parameter = py::reinterpret_borrow<py::object>(each);
    const py::object grad = member(parameter, row_names().grad);
    if (grad.is_none() || gathering.add(parameter, grad, place, settings, to)) continue;
    left.append(parameter);
  }
  return left;
}

inline void define_rows(py::module_& m) {
  m.def("add_rows", &add_rows);
  m.def("look_at_rows", &look_at_rows);
}

}  // namespace sparse_ft
