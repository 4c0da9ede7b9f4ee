// The prepared parameters of an optimiser (prepared.h) found in its groups, in one pass at every step:
// 1.2 us a parameter where Python's own passes took 2.8, 1.4 of caches that a model has used since.
#pragma once

#include "prepared.h"

namespace sparse_ft {

// What a step is about, lists of a `Batch` in Python. at: where the gradients lie.
struct Stepping {
  py::list linked, modules, states, weights, linked_at, others, others_at, written;

  explicit Stepping(py::handle batch)
      : linked(batch.attr("linked")),
        modules(batch.attr("owners")),
        states(batch.attr("states")),
        weights(batch.attr("weights")),
        linked_at(batch.attr("linked_at")),
        others(batch.attr("others")),
        others_at(batch.attr("others_at")),
        written(batch.attr("written")) {}
};

// What the hook after the step need not find out, lists of `nn.steps.Heard` in Python.
struct Hearing {
  py::list claims, others;

  explicit Hearing(py::handle heard) : claims(heard.attr("claims")), others(heard.attr("others")) {}

  void add_claim(const py::object& claim) {
    if (!last_ || !claim.is(last_)) claims.append(claim);
    last_ = claim;
  }

 private:
  py::object last_;
};

// How the modules of a class are asked, found out once a step.
class ModuleClasses {
 public:
  struct ModuleClass {
    PyTypeObject* type;   // of modules that live meanwhile
    bool may_own;         // not of one that was reverted
    bool is_plain;        // its weight is the parameter of that name
    bool has_usual_word;  // its `after_step` is that of most
  };

  // usual: the class of all that own values, which says what most do.
  explicit ModuleClasses(py::handle usual) : usual_(usual) {}

  ModuleClass of(py::handle module) {
    PyTypeObject* const type = Py_TYPE(module.ptr());
    for (const ModuleClass& known : known_)
      if (known.type == type) return known;
    ModuleClass found{type, false, false, false};
    found.may_own = PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(usual_.ptr()));
    if (found.may_own) ask(found);
    known_.push_back(found);
    return found;
  }

 private:
  void ask(ModuleClass& found) const {
    RowMembers& its = row_members();
    const py::handle type = reinterpret_cast<PyObject*>(found.type);
    const auto is_usual = [&](Member& member) { return member.of(type).is(member.of(usual_)); };
    found.is_plain = its.has_cache.is(type, Py_True) && is_usual(its.weight) &&
                     is_usual(its.weight_or_none) && !py::hasattr(type, its.parameters.name());
    found.has_usual_word = its.after_step.of(type).is(its.usual_after_step.of(type));
  }

  const py::handle usual_;  // a type
  std::vector<ModuleClass> known_;
};

// The parameters of one optimiser as they are found in its groups. What Python's `Gathered._add` would
// do for each of them is done here for those of which nothing has changed.
class Gathering {
 public:
  // prepared: {id of a parameter: row}. state: {parameter: {name: tensor}}. owners: {id of values:
  // references to the modules that held them}. usual: a class, see `ModuleClasses`.
  Gathering(Looking& looking, const py::dict& prepared, const py::dict& state,
            const py::dict& owners, py::handle usual)
      : looking_(looking), prepared_(prepared), state_(state), owners_(owners), classes_(usual) {}

  // Whether `parameter`, which has a gradient, is a row of `to` now; otherwise Python has to look.
  bool add(const py::object& parameter, const py::object& grad, const Place place,
           py::handle settings, Stepping& to, Hearing& heard, Trail& trail) {
    RowMembers& its = row_members();
    const py::object id = id_of(parameter);
    const py::object row = row_of(parameter, id);
    Owner owner;
    if (!row || !find_owner(parameter, id, owner)) return false;
    const int64_t address = looking_.at(row, owner, grad);
    if (address == kChanged || address == kNowhere || looking_.place() != place) return false;
    if (!trail.is_known()) note(row, owner, trail);
    its.settings.set(row, settings);
    looking_.append_written(to.written);
    if (owner.module) {
      to.linked.append(row);
      to.linked_at.append(address);
      to.modules.append(owner.module);
      to.states.append(owner.state);
      to.weights.append(owner.weight);
      hear(parameter, owner, heard);
    } else {
      to.others.append(row);
      to.others_at.append(address);
    }
    return true;
  }

  // Pass over a parameter without a gradient. Returns whether a module owns it.
  bool pass(const py::object& parameter) {
    next_state_of(parameter);
    return static_cast<bool>(item_of(owners_, id_of(parameter)));
  }

 private:
  // Null where it is new or has another state.
  py::object row_of(const py::object& parameter, const py::object& id) {
    RowMembers& its = row_members();
    const py::object row = item_of(prepared_, id);
    if (!row || !looking_.is_row(row) || !its.seed.is(row, Py_None)) return {};
    const py::object state = state_of(parameter);
    return state && its.state.of(row).is(state) ? row : py::object();
  }

  // Null where there is none.
  py::object state_of(const py::object& parameter) {
    const py::object found = next_state_of(parameter);
    return found ? found : item_of(state_, parameter);
  }

  // Null where the next one is another's. Most states are in the order of their parameters: a tensor's
  // hash, which the others are found by, is computed in Python.
  py::object next_state_of(const py::object& parameter) {
    PyObject *key, *found;
    Py_ssize_t next = next_state_;
    if (!PyDict_Next(state_.ptr(), &next, &key, &found) || key != parameter.ptr()) return {};
    next_state_ = next;
    return py::reinterpret_borrow<py::object>(found);
  }

  // The module whose weight the step writes through; none for a parameter that no module owns. False
  // where Python must find out.
  bool find_owner(const py::object& parameter, const py::object& id, Owner& owner) {
    RowMembers& its = row_members();
    const py::object held_by = item_of(owners_, id);
    if (!held_by) return true;
    if (!PyTuple_Check(held_by.ptr()) || PyTuple_GET_SIZE(held_by.ptr()) != 1) return false;
    owner.module = called(PyTuple_GET_ITEM(held_by.ptr(), 0));
    if (owner.module.is_none()) return false;
    const ModuleClasses::ModuleClass of_class = classes_.of(owner.module);
    if (!of_class.may_own) return false;
    py::object parameters;
    if (of_class.is_plain) {  // a module takes 0.1 us for each attribute that is read from itself
      const py::object own = existing(PyObject_GenericGetDict(owner.module.ptr(), nullptr));
      owner.state = item_of(own, its.of_owner.name());
      parameters = item_of(own, its.parameters.name());
    } else {
      if (!its.has_cache.is(owner.module, Py_True)) return false;
      owner.state = its.of_owner.of(owner.module);
      parameters = its.parameters.of(owner.module);
    }
    if (!owner.state || !parameters) return false;
    const py::object values = item_of(parameters, its.values.name());
    if (!values || !values.is(parameter)) return false;
    owner.weight = of_class.is_plain ? item_of(parameters, its.stored_weight.name())
                                     : called(its.weight_or_none.of(owner.module));
    return owner.weight && !owner.weight.is_none();
  }

  void note(py::handle row, const Owner& owner, Trail& trail) const {
    looking_.note(row, trail);
    if (!owner.module) return;
    trail.note(owner.module.ptr());
    trail.note(owner.state.ptr(), 320);
    const py::object own = existing(PyObject_GenericGetDict(owner.module.ptr(), nullptr));
    const py::object parameters = item_of(own, row_members().parameters.name());
    note_dict(own, trail);
    if (parameters) note_dict(parameters, trail);
  }

  // `nn.steps._needs_no_word`, of an owner whose values have a gradient.
  void hear(const py::object& parameter, const Owner& owner, Hearing& heard) {
    RowMembers& its = row_members();
    const bool needs_no_word = classes_.of(owner.module).has_usual_word &&
                               its.shards.is(owner.state, Py_None) &&
                               its.resized.is(owner.state, Py_False);
    if (needs_no_word)
      heard.add_claim(its.claim.of(owner.state));
    else
      heard.others.append(parameter);
  }

  Looking& looking_;
  const py::dict &prepared_, &state_, &owners_;
  ModuleClasses classes_;
  Py_ssize_t next_state_ = 0;  // where in `state_` the next parameter's may be
};

// Of `parameters` those that have a gradient on the device of `first` and are as they were go to
// `batch`. Returns the others that have one, which Python has to look at.
inline py::list add_rows(py::handle row_type, const py::dict& prepared, const py::dict& state,
                         const py::dict& owners, const py::type& usual, const py::list& parameters,
                         const py::object& first, py::handle settings, py::handle batch,
                         py::handle heard, Trail& trail, py::handle plain) {
  const Place place = place_of(first);
  if (place == kNoPlace) return parameters;
  Looking looking(row_type, plain);
  Gathering gathering(looking, prepared, state, owners, usual);
  Stepping to(batch);
  Hearing hearing(heard);
  py::list left;
  for (const py::handle each : parameters) {
    const auto parameter = py::reinterpret_borrow<py::object>(each);
    trail.come_to(parameter.ptr());
    const py::object grad = row_members().grad.of(parameter);
    if (grad.is_none()) {
      trail.forget();
      if (gathering.pass(parameter)) hearing.others.append(parameter);
    } else if (!gathering.add(parameter, grad, place, settings, to, hearing, trail)) {
      trail.forget();
      left.append(parameter);
    }
  }
  return left;
}

inline void define_rows(py::module_& m) {
  py::class_<Trail>(m, "Trail").def(py::init<>()).def("restart", &Trail::restart);
  m.def("add_rows", &add_rows);
  m.def("look_at_rows", &look_at_rows);
  m.def("known_of", &known_of);
  m.def("mark_rows", &mark_rows);
}

}  // namespace sparse_ft
