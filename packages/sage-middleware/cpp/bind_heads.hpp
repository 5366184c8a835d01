// Heads that come again, for Python.
#pragma once

#include "python.hpp"
#include "sage/heads.hpp"

namespace bindings {

using python::answer;
using python::Ref;

inline PyObject* body_after(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 4, "body_after");
    const std::size_t most = PyLong_AsSize_t(args[3]);
    if (most == static_cast<std::size_t>(-1) && PyErr_Occurred()) throw python::Raised();
    const auto body = sage::body_after(python::bytes(args[0], "data"), python::bytes(args[1], "before"),
                                       python::bytes(args[2], "after"), most);
    if (!body) return python::none();
    return Ref::made(PyBytes_FromStringAndSize(body->data(), static_cast<Py_ssize_t>(body->size())));
  });
}

}  // namespace bindings
