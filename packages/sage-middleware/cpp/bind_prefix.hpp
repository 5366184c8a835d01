// The prefix index for Python: engines by name, and the type that holds one.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "python.hpp"
#include "sage/prefix.hpp"

namespace bindings {

using python::answer;
using python::Ref;

class PrefixIndex {
 public:
  explicit PrefixIndex(Py_ssize_t capacity)
      : capacity_(checked(capacity)), index_(seed()), numbers_(Ref::made(PyDict_New())) {}

  Ref match(PyObject* blocks) const {
    const auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(blocks));
    Ref found = Ref::made(PyDict_New());
    index_.match(
        count, [&](std::size_t at) { return hash(PyTuple_GET_ITEM(blocks, static_cast<Py_ssize_t>(at))); },
        [&](std::size_t engine, std::size_t length) {
          set(found, names_[engine].get(), python::integer(length));
        });
    return found;
  }

  void insert(PyObject* name, PyObject* blocks) {
    blocks_.clear();
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(blocks); ++at)
      blocks_.push_back(hash(PyTuple_GET_ITEM(blocks, at)));
    index_.insert(number(name, capacity_), blocks_);
  }

  void drop(PyObject* name) {
    PyObject* known = find(name);
    if (known == nullptr) return;
    const std::size_t at = PyLong_AsSize_t(known);
    if (PyDict_DelItem(numbers_.get(), name) != 0) throw python::Raised();
    index_.drop(at);
    names_[at] = Ref();
  }

  void resize(PyObject* name, Py_ssize_t blocks) {
    const std::size_t capacity = checked(blocks);
    index_.resize(number(name, capacity), capacity);
  }

  std::size_t size() const { return index_.size(); }

 private:
  static std::uint64_t seed() {
    const Ref drawn = Ref::made(
        PyObject_CallFunction(python::member("os", "urandom").get(), "n", Py_ssize_t{sizeof(std::uint64_t)}));
    std::uint64_t value = 0;
    std::memcpy(&value, python::bytes(drawn.get(), "urandom").data(), sizeof(value));
    return value;
  }

  static std::size_t checked(Py_ssize_t blocks) {
    if (blocks >= 0) return static_cast<std::size_t>(blocks);
    python::raise(python::member("sage.common.errors", "UsageError").get(),
                  "A prefix index of " + std::to_string(blocks) + " blocks cannot be; 0 or more can.");
  }

  static std::uint64_t hash(PyObject* block) {
    const std::uint64_t value = PyLong_AsUnsignedLongLong(block);
    if (value == UINT64_MAX && PyErr_Occurred()) throw python::Raised();
    return value;
  }

  static void set(const Ref& dict, PyObject* key, const Ref& value) {
    if (PyDict_SetItem(dict.get(), key, value.get()) != 0) throw python::Raised();
  }

  PyObject* find(PyObject* name) const {
    PyObject* known = PyDict_GetItemWithError(numbers_.get(), name);
    if (known == nullptr && PyErr_Occurred()) throw python::Raised();
    return known;
  }

  // That of an engine, which is new with this capacity unless it is known. The lowest free one keeps sets small.
  std::size_t number(PyObject* name, std::size_t capacity) {
    if (PyObject* known = find(name); known != nullptr) return PyLong_AsSize_t(known);
    std::size_t at = 0;
    while (at < names_.size() && names_[at].get() != nullptr) ++at;
    if (at == names_.size()) names_.emplace_back();
    names_[at] = Ref::to(name);
    set(numbers_, name, python::integer(at));
    index_.add(at, capacity);
    return at;
  }

  std::size_t capacity_;
  sage::PrefixIndex index_;
  Ref numbers_;
  std::vector<Ref> names_;  // none where a number is free
  std::vector<std::uint64_t> blocks_;
};

struct PrefixIndexObject {
  PyObject_HEAD
  PrefixIndex* index;
};

inline PrefixIndex& index_of(PyObject* self) { return *reinterpret_cast<PrefixIndexObject*>(self)->index; }

inline PyObject* blocks_of(PyObject* blocks) {
  if (!PyTuple_Check(blocks)) python::wrong_type("blocks", "a tuple", blocks);
  return blocks;
}

inline PyObject* engine_of(PyObject* name) {
  if (!PyUnicode_Check(name)) python::wrong_type("engine", "a str", name);
  return name;
}

inline PyObject* index_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  return answer([&] {
    static const char* const names[] = {"capacity", nullptr};
    Py_ssize_t capacity = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n:PrefixIndex", const_cast<char**>(names), &capacity))
      throw python::Raised();
    auto made = std::make_unique<PrefixIndex>(capacity);
    Ref self = Ref::made(type->tp_alloc(type, 0));
    reinterpret_cast<PrefixIndexObject*>(self.get())->index = made.release();
    return self;
  });
}

inline void index_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete reinterpret_cast<PrefixIndexObject*>(self)->index;
  type->tp_free(self);
  Py_DECREF(type);
}

inline Py_ssize_t index_length(PyObject* self) { return static_cast<Py_ssize_t>(index_of(self).size()); }

inline PyObject* index_match(PyObject* self, PyObject* blocks) {
  return answer([&] { return index_of(self).match(blocks_of(blocks)); });
}

inline PyObject* index_insert(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 2, "insert");
    index_of(self).insert(engine_of(args[0]), blocks_of(args[1]));
    return python::none();
  });
}

inline PyObject* index_drop(PyObject* self, PyObject* name) {
  return answer([&] {
    index_of(self).drop(engine_of(name));
    return python::none();
  });
}

inline PyObject* index_resize(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 2, "resize");
    const Py_ssize_t blocks = PyNumber_AsSsize_t(args[1], PyExc_OverflowError);
    if (blocks == -1 && PyErr_Occurred()) throw python::Raised();
    index_of(self).resize(engine_of(args[0]), blocks);
    return python::none();
  });
}

inline PyMethodDef index_methods[] = {
    {"match", python::method(index_match), METH_O, nullptr},
    {"insert", python::method(index_insert), METH_FASTCALL, nullptr},
    {"drop", python::method(index_drop), METH_O, nullptr},
    {"resize", python::method(index_resize), METH_FASTCALL, nullptr},
    {},
};

inline PyType_Slot index_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(index_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(index_dealloc)},
    {Py_sq_length, reinterpret_cast<void*>(index_length)},
    {Py_tp_methods, index_methods},
    {},
};

inline PyType_Spec index_spec = {"sage.middleware._native.PrefixIndex", sizeof(PrefixIndexObject), 0,
                                 Py_TPFLAGS_DEFAULT, index_slots};

}  // namespace bindings
