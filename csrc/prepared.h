// The parameters that Python has prepared for a step (sparse_ft/optim), looked at before it and marked
// after it. Whatever is otherwise than it was is left to Python, which prepares it anew.
#pragma once

#include "lying.h"
#include "members.h"

namespace sparse_ft {

// What a row is made of in Python.
struct RowMembers {
  // of a tensor
  Member grad{"grad"};
  Member version{"_version"};
  // of a `Prepared`
  Member parameter{"parameter"};
  Member state{"state"};
  Member seed{"seed"};
  Member settings{"settings"};
  Member to_origin{"to_origin"};
  Member known{"known"};
  Member lying{"lying"};
  Member stamp{"stamp"};
  Member old_seed{"_seed"};
  Member old_selection{"_selection"};
  Member old_index_version{"_index_version"};
  // of a module that owns values
  Member parameters{"_parameters"};
  Member of_owner{"_sparse_ft_state"};
  Member values{"values"};
  Member stored_weight{"weight"};
  Member has_cache{"has_cache"};
  Member weight{"_weight"};
  Member weight_or_none{"_weight_or_none"};
  Member after_step{"after_step"};
  Member usual_after_step{"usual_after_step"};
  // of its `State`
  Member selection{"selection"};
  Member tracked{"tracked"};
  Member factor{"factor"};
  Member claim{"claim"};
  Member shards{"shards"};
  Member resized{"resized"};
  Member held{"held"};
  Member shown{"shown"};
  Member suspected{"suspected"};
  Member overwritten{"overwritten"};
  // of a `Selection`, a `Held` and a `Stamp`
  Member index{"index"};
  Member storage{"storage"};
  Member values_version{"values_version"};
  Member weight_version{"weight_version"};
};

inline RowMembers& row_members() {
  static RowMembers* const members = new RowMembers;  // as long as the process
  return *members;
}

inline py::object called(py::handle callable) { return existing(PyObject_CallNoArgs(callable.ptr())); }

inline bool is_equal(py::handle a, py::handle b) {
  if (a.is(b)) return true;
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
inline py::object id_of(py::handle object) { return existing(PyLong_FromVoidPtr(object.ptr())); }

constexpr int64_t kChanged = -2;  // beside kNowhere: Python has to prepare it

// A module whose weight a step writes; all null for a parameter that trains whole.
struct Owner {
  py::object module, state, weight;
};

inline void note_dict(py::handle dict, Trail& trail) {
  trail.note(dict.ptr(), sizeof(PyDictObject));
  if (PyDict_Check(dict.ptr())) trail.note(reinterpret_cast<PyDictObject*>(dict.ptr())->ma_keys, 256);
}

// Its Python object, and what torch keeps of it around its sizes.
inline void note_tensor(py::handle tensor, Trail& trail) {
  dlpack::View view;
  trail.note(tensor.ptr());
  if (read_view(tensor, view) && view.dim) trail.note(view.shape - 8, 192);
}

// What a step writes, and where each gradient lies.
class Looking {
 public:
  // row_type: of the rows that are looked at. plain: the type of a gradient.
  Looking(py::handle row_type, py::handle plain) : row_type_(row_type), plain_(plain) {}

  // The address of `grad`, the gradient of `row`, whose tensors lie where they lay; kNowhere for one
  // that does not lie as its parameter, kChanged for a row that is not as it was.
  int64_t at(py::handle row, const Owner& owner, py::handle grad) {
    if (!find_tensors(row) || (owner.module && !find_owned(row, owner))) return kChanged;
    if (!lying_->holds(tensors_)) return kChanged;
    return py::type::handle_of(grad).is(plain_) ? lying_->address_like_first(grad) : kNowhere;
  }

  // Of the row that was looked at last: what a step changes of it, and where it is.
  void append_written(py::list& written) const {
    for (size_t i = 0; i < num_written_; ++i) written.append(tensors_[i]);
  }
  Place place() const { return lying_->place(); }

  // What looking at it came to.
  void note(py::handle row, Trail& trail) const {
    RowMembers& its = row_members();
    trail.note(row.ptr(), 160);
    trail.note(its.lying.of(row).ptr());
    lying_->note(trail);
    note_dict(its.state.of(row), trail);
    for (const py::object& tensor : tensors_) note_tensor(tensor, trail);
  }

  bool is_row(py::handle row) const { return py::type::handle_of(row).is(row_type_); }

 private:
  // `Prepared.tensors`: what the row was prepared of, as it is now, what a step changes first. False
  // where the row is new, or something else has changed that it was prepared of.
  bool find_tensors(py::handle row) {
    RowMembers& its = row_members();
    if (!is_row(row) || !its.to_origin.is(row, Py_False)) return false;
    const py::object lying = its.lying.of(row);
    if (lying.is_none() || !read_lying_.load(lying, false)) return false;
    lying_ = py::detail::cast_op<const Lying*>(read_lying_);
    if (!is_equal(its.seed.of(row), its.old_seed.of(row))) return false;
    tensors_.clear();
    tensors_.push_back(its.parameter.of(row));
    const py::object state = its.state.of(row);
    PyObject *key, *tensor;
    Py_ssize_t at = 0;
    if (!PyDict_Check(state.ptr())) throw py::type_error("state: expected a dict");
    while (PyDict_Next(state.ptr(), &at, &key, &tensor))
      tensors_.push_back(py::reinterpret_borrow<py::object>(tensor));
    num_written_ = tensors_.size();
    return true;
  }

  bool find_owned(py::handle row, const Owner& owner) {
    RowMembers& its = row_members();
    const py::object selection = its.selection.of(owner.state);
    if (!selection.is(its.old_selection.of(row))) return false;
    const py::object version = its.version.of(its.tracked.of(owner.state));
    if (!is_equal(version, its.old_index_version.of(row))) return false;
    tensors_.push_back(owner.weight);
    ++num_written_;
    tensors_.push_back(its.index.of(selection));
    const py::object factor = its.factor.of(owner.state);
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
  RowMembers& its = row_members();
  Looking looking(row_type, plain);
  std::vector<int64_t> addresses;
  addresses.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const py::object row = rows[i];
    Owner owner;
    if (i < modules.size()) {
      owner.module = modules[i];
      owner.state = its.of_owner.of(owner.module);
      owner.weight = called(its.weight.of(owner.module));
    }
    addresses.push_back(looking.at(row, owner, its.grad.of(its.parameter.of(row))));
    if (addresses.back() != kChanged) looking.append_written(written);
  }
  return addresses;
}

// What a call takes of each row: what the compiled part knows of it, and its settings as that knows
// them. native_settings: makes these of a row's; those of a group are one object.
inline std::pair<py::list, py::list> known_of(const py::list& rows, py::handle native_settings) {
  RowMembers& its = row_members();
  py::list known, settings;
  py::object last, native;
  for (const py::handle row : rows) {
    const py::object own = its.settings.of(row);
    if (!last || !own.is(last)) {
      native = native_settings(own);
      last = own;
    }
    known.append(its.known.of(row));
    settings.append(native);
  }
  return {known, settings};
}

// `Showing._mark_stepped` again: whether it would find that values, weight and index of a module are
// the tensors that they were when the row last kept what it found, changed by a step that wrote both.
inline bool mark_again(py::handle row, py::handle state, py::handle weight) {
  RowMembers& its = row_members();
  if (weight.is_none()) return false;
  const py::object known = its.stamp.of(row);
  if (known.is_none() || !its.shown.of(state).is(known)) return false;
  if (called(its.storage.of(its.held.of(state))).is_none()) return false;
  its.values_version.set(known, its.version.of(its.parameter.of(row)));
  its.weight_version.set(known, its.version.of(weight));
  its.suspected.set(state, py::none());
  its.overwritten.set(state, py::none());
  return true;
}

// The modules whose weights a step wrote show their values now: lists of a `Batch`. Returns the numbers
// of those that Python has to mark.
inline std::vector<size_t> mark_rows(const py::list& rows, const py::list& states,
                                     const py::list& weights) {
  if (states.size() != rows.size() || weights.size() != rows.size())
    throw std::invalid_argument("states, weights: expected one a row");
  std::vector<size_t> left;
  for (size_t i = 0; i < rows.size(); ++i)
    if (!mark_again(rows[i], states[i], weights[i])) left.push_back(i);
  return left;
}

}  // namespace sparse_ft
