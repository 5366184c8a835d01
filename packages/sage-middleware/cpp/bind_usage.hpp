// The tokens of an engine's answer, for Python.
#pragma once

#include "sage/usage.hpp"
#include "slots.hpp"

namespace bindings {

inline PyObject* read_usage(PyObject*, PyObject* body) {
  return answer([&] {
    static sage::Tape& tape = *new sage::Tape;  // belongs to the lock's holder, until it calls Python again
    static const python::Kept usage = python::member("sage.middleware.engines.port", "Usage");
    const auto found = sage::usage_of(python::bytes(body, "body"), tape);
    if (!found) return python::none();
    return python::call(usage.get(), python::number(static_cast<long long>(found->prompt)).get(),
                        python::number(static_cast<long long>(found->completion)).get());
  });
}

}  // namespace bindings
