// Fields of Python objects whose types keep them in slots (`__slots__`, msgspec's structs): read and written
// where they lie. That costs a nanosecond or two, an attribute by its name thirty.
#pragma once

#include "python.hpp"

#include <structmember.h>

namespace python {

// A reference that is found once and never freed: at the end of the process there is no interpreter any more.
class Kept {
 public:
  Kept(Ref once) : object_(once.release()) {}

  PyObject* get() const noexcept { return object_; }
  operator Ref() const { return Ref::to(object_); }

 private:
  PyObject* object_;
};

// The place of one slot in the objects of a type, found once, by name. Whoever uses it has made sure that the
// object is of that type.
class Slot {
 public:
  Slot(const Ref& type, const char* name) {
    const Ref found = Ref::made(PyObject_GetAttrString(type.get(), name));
    if (!Py_IS_TYPE(found.get(), &PyMemberDescr_Type)) wrong_type(name, "a slot", found.get());
    offset_ = reinterpret_cast<PyMemberDescrObject*>(found.get())->d_member->offset;
  }

  // Borrowed; a field that was never set is a fault of ours.
  PyObject* operator()(PyObject* object) const {
    PyObject* value = place(object);
    if (value == nullptr)
      raise(PyExc_AttributeError, std::string("A field of ") + Py_TYPE(object)->tp_name + " is not set.");
    return value;
  }

  void put(PyObject* object, Ref value) const {
    const Ref before = Ref::owned(std::exchange(place(object), value.release()));  // freed when all is in its place
  }

 private:
  PyObject*& place(PyObject* object) const {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset_);
  }

  Py_ssize_t offset_;
};

inline double real(PyObject* object) {
  if (PyFloat_CheckExact(object)) return PyFloat_AS_DOUBLE(object);
  const double value = PyFloat_AsDouble(object);
  if (value == -1.0 && PyErr_Occurred()) throw Raised();
  return value;
}

inline long long whole(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw Raised();
  return value;
}

inline Ref number(double value) { return Ref::made(PyFloat_FromDouble(value)); }
inline Ref number(long long value) { return Ref::made(PyLong_FromLongLong(value)); }

// What a dictionary holds under a key, or null. Borrowed.
inline PyObject* found(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred()) throw Raised();
  return value;
}

inline void check(int status) {
  if (status < 0) throw Raised();
}

// Calls what takes its arguments in order.
template <class... Arguments>
Ref call(PyObject* callee, Arguments*... arguments) {
  PyObject* const list[] = {nullptr, arguments...};
  constexpr std::size_t count = sizeof...(arguments) | PY_VECTORCALL_ARGUMENTS_OFFSET;
  return Ref::made(PyObject_Vectorcall(callee, list + 1, count, nullptr));
}

// Calls a method by its name.
template <class... Arguments>
Ref ask(PyObject* self, const Kept& name, Arguments*... arguments) {
  PyObject* const list[] = {nullptr, self, arguments...};
  return Ref::made(PyObject_VectorcallMethod(
      name.get(), list + 1, (sizeof...(arguments) + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
}

inline Ref attribute(const Ref& object, const char* name) {
  return Ref::made(PyObject_GetAttrString(object.get(), name));
}

inline Ref word(const char* text) { return Ref::made(PyUnicode_InternFromString(text)); }

}  // namespace python
