// Observations sorted into the buckets of a histogram, for Python.
#pragma once

#include <algorithm>
#include <vector>

#include "slots.hpp"

namespace bindings {

// Adds one to the count of each value's bucket: the first whose bound is not below it, or the one after the last.
inline PyObject* count_values(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 3, "count_values");
    PyObject *counts = args[0], *values = args[1], *bounds = args[2];
    if (!PyList_CheckExact(counts)) python::wrong_type("counts", "a list", counts);
    if (!PyList_CheckExact(values)) python::wrong_type("values", "a list", values);
    if (!PyTuple_CheckExact(bounds)) python::wrong_type("bounds", "a tuple", bounds);
    std::vector<double> limits;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bounds); ++i)
      limits.push_back(python::real(PyTuple_GET_ITEM(bounds, i)));
    if (PyList_GET_SIZE(counts) != static_cast<Py_ssize_t>(limits.size()) + 1)
      python::raise(PyExc_ValueError, "counts has " + std::to_string(PyList_GET_SIZE(counts)) +
                                          " items; valid is one more than the " + std::to_string(limits.size()) +
                                          " bounds.");
    std::vector<long long> more(limits.size() + 1);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(values); ++i) {
      const double value = python::real(PyList_GET_ITEM(values, i));
      ++more[static_cast<std::size_t>(std::lower_bound(limits.begin(), limits.end(), value) - limits.begin())];
    }
    for (std::size_t i = 0; i < more.size(); ++i) {
      if (more[i] == 0) continue;
      const auto at = static_cast<Py_ssize_t>(i);
      const long long sum = python::whole(PyList_GET_ITEM(counts, at)) + more[i];
      python::check(PyList_SetItem(counts, at, python::number(sum).release()));
    }
    return python::none();
  });
}

}  // namespace bindings
