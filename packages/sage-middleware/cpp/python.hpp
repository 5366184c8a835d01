// What the bindings need of CPython's own API: references that free themselves, errors that unwind the stack.
// A header-only binding library would do the same, and take ten times as long to compile.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>

namespace python {

// Thrown where Python's error indicator is set.
struct Raised {};

[[noreturn]] inline void raise(PyObject* type, const std::string& message) {
  PyErr_SetString(type, message.c_str());
  throw Raised();
}

// Owns one reference, or none.
class Ref {
 public:
  Ref() = default;
  Ref(const Ref& other) noexcept : object_(Py_XNewRef(other.object_)) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() { Py_XDECREF(object_); }

  static Ref to(PyObject* borrowed) { return Ref(Py_NewRef(borrowed)); }
  static Ref owned(PyObject* object) { return Ref(object); }  // may be null

  // A new reference as the API returns it; what is null has raised.
  static Ref made(PyObject* owned) {
    if (owned == nullptr) throw Raised();
    return Ref(owned);
  }

  PyObject* get() const noexcept { return object_; }
  PyObject* release() noexcept { return std::exchange(object_, nullptr); }

 private:
  explicit Ref(PyObject* owned) noexcept : object_(owned) {}

  PyObject* object_ = nullptr;
};

inline Ref integer(std::size_t value) { return Ref::made(PyLong_FromSize_t(value)); }
inline Ref boolean(bool value) { return Ref::to(value ? Py_True : Py_False); }
inline Ref none() { return Ref::to(Py_None); }
inline Ref text(std::string_view value) {
  return Ref::made(PyUnicode_FromStringAndSize(value.data(), static_cast<Py_ssize_t>(value.size())));
}

template <class... Items>
Ref tuple(Items... items) {
  Ref made = Ref::made(PyTuple_New(sizeof...(items)));
  Py_ssize_t at = 0;
  (PyTuple_SET_ITEM(made.get(), at++, items.release()), ...);
  return made;
}

inline Ref member(const char* module, const char* name) {
  return Ref::made(PyObject_GetAttrString(Ref::made(PyImport_ImportModule(module)).get(), name));
}

inline std::string str(PyObject* object) {
  const Ref said = Ref::made(PyObject_Str(object));
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(said.get(), &size);
  if (data == nullptr) throw Raised();
  return {data, static_cast<std::size_t>(size)};
}

[[noreturn]] inline void wrong_type(const char* name, const char* wanted, PyObject* found) {
  raise(PyExc_TypeError, std::string(name) + " has to be " + wanted + "; found " + Py_TYPE(found)->tp_name + ".");
}

inline std::string_view bytes(PyObject* object, const char* name) {
  if (!PyBytes_Check(object)) wrong_type(name, "bytes", object);
  return {PyBytes_AS_STRING(object), static_cast<std::size_t>(PyBytes_GET_SIZE(object))};
}

inline void expect(Py_ssize_t found, Py_ssize_t wanted, const char* function) {
  if (found != wanted)
    raise(PyExc_TypeError, std::string(function) + " takes " + std::to_string(wanted) + " arguments; found " +
                               std::to_string(found) + ".");
}

// Lets other threads run Python as long as it lives.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() { PyEval_RestoreThread(state_); }

 private:
  PyThreadState* state_;
};

// Calls `body` for Python: what it throws becomes the exception of the call, whose value is then `failed`.
template <class Result, class Body>
Result guarded(Result failed, Body&& body) noexcept {
  try {
    return body();
  } catch (const Raised&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return failed;
}

template <class Body>
PyObject* answer(Body&& body) noexcept {
  return guarded(static_cast<PyObject*>(nullptr), [&] { return Ref(body()).release(); });
}

// A function of any of the API's signatures, as tables of methods take it.
template <class Function>
PyCFunction method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace python
