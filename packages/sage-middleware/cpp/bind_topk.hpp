// `top_k` for Python: arrays by the buffer protocol, which needs no header of NumPy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "python.hpp"
#include "sage/topk.hpp"

namespace bindings {

using python::answer;
using python::Ref;

class Buffer {
 public:
  Buffer(PyObject* object, int flags) {
    if (PyObject_GetBuffer(object, &view_, flags) != 0) throw python::Raised();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { PyBuffer_Release(&view_); }

  const Py_buffer& view() const noexcept { return view_; }

  template <class T>
  std::span<T> items() const {
    return {static_cast<T*>(view_.buf), static_cast<std::size_t>(view_.len) / sizeof(T)};
  }

 private:
  Py_buffer view_;
};

inline bool is_array(PyObject* object) {
  return PyObject_CheckBuffer(object) && PyObject_HasAttrString(object, "dtype");
}

inline std::string describe(PyObject* array) {
  if (!is_array(array)) return Py_TYPE(array)->tp_name;
  const Ref type = Ref::made(PyObject_GetAttrString(array, "dtype"));
  const Ref dimensions = Ref::made(PyObject_GetAttrString(array, "ndim"));
  return python::str(type.get()) + " of " + python::str(dimensions.get()) + " dimensions";
}

// A float32 array of two dimensions, lent as long as this lives.
class Floats {
 public:
  Floats(PyObject* array, const char* name) : buffer_(lent(array, name)) {
    const Py_buffer& view = buffer_.view();
    const std::string_view format(view.format);
    if (view.ndim != 2 || (format != "f" && format != "=f")) refuse(array, name);  // "=": not aligned
    if (!PyBuffer_IsContiguous(&view, 'C') || reinterpret_cast<std::uintptr_t>(view.buf) % alignof(float) != 0)
      python::raise(PyExc_ValueError,
                    std::string(name) + " has to be C-contiguous and aligned; use numpy.ascontiguousarray.");
  }

  sage::Matrix matrix() const {
    const Py_buffer& view = buffer_.view();
    return {static_cast<const float*>(view.buf), static_cast<std::size_t>(view.shape[0]),
            static_cast<std::size_t>(view.shape[1])};
  }

 private:
  [[noreturn]] static void refuse(PyObject* array, const char* name) {
    python::raise(PyExc_TypeError,
                  std::string(name) + " has to be a float32 array of 2 dimensions; found " + describe(array) + ".");
  }

  static Buffer lent(PyObject* array, const char* name) {
    if (!is_array(array)) refuse(array, name);
    try {
      return Buffer(array, PyBUF_RECORDS_RO);
    } catch (const python::Raised&) {  // dates and some others have no format
      PyErr_Clear();
      refuse(array, name);
    }
  }

  Buffer buffer_;
};

inline sage::Metric metric_of(const std::string& name) {
  if (name == "inner_product") return sage::Metric::inner_product;
  if (name == "cosine") return sage::Metric::cosine;
  python::raise(PyExc_ValueError, "metric has to be 'inner_product' or 'cosine'; found '" + name + "'.");
}

inline sage::Isa isa_of(const std::string& name) {
  if (name == "auto") return sage::best_isa();
  if (name != "scalar" && name != "avx2")
    python::raise(PyExc_ValueError, "isa has to be 'auto', 'scalar' or 'avx2'; found '" + name + "'.");
  const sage::Isa isa = name == "avx2" ? sage::Isa::avx2 : sage::Isa::scalar;
  if (!sage::supports(isa)) python::raise(PyExc_ValueError, "This machine does not have '" + name + "'.");
  return isa;
}

inline Ref new_array(std::size_t rows, std::size_t columns, const char* type) {
  static PyObject* const empty = python::member("numpy", "empty").release();
  return Ref::made(PyObject_CallFunction(empty, "(nn)s", static_cast<Py_ssize_t>(rows),
                                         static_cast<Py_ssize_t>(columns), type));
}

inline Ref search(PyObject* vectors, PyObject* queries, Py_ssize_t k, sage::Metric metric, const std::string& isa) {
  const Floats lent_rows(vectors, "vectors"), lent_asked(queries, "queries");
  const sage::Matrix rows = lent_rows.matrix(), asked = lent_asked.matrix();
  if (rows.columns != asked.columns)
    python::raise(PyExc_ValueError, "vectors have " + std::to_string(rows.columns) + " columns and queries " +
                                        std::to_string(asked.columns) + "; they have to agree.");
  if (k < 1) python::raise(PyExc_ValueError, "k has to be at least 1; found " + std::to_string(k) + ".");
  const sage::Isa with = isa_of(isa);
  const std::size_t kept = std::min(static_cast<std::size_t>(k), rows.rows);
  Ref indices = new_array(asked.rows, kept, "int64"), scores = new_array(asked.rows, kept, "float32");
  {
    const Buffer out_indices(indices.get(), PyBUF_CONTIG), out_scores(scores.get(), PyBUF_CONTIG);
    const python::Unlocked unlocked;
    sage::top_k(rows, asked, static_cast<std::size_t>(k), metric, with, out_indices.items<std::int64_t>(),
                out_scores.items<float>());
  }
  return python::tuple(std::move(indices), std::move(scores));
}

inline PyObject* top_k(PyObject*, PyObject* args, PyObject* kwargs) {
  return answer([&] {
    static const char* const names[] = {"vectors", "queries", "k", "metric", "isa", nullptr};
    PyObject *vectors = nullptr, *queries = nullptr;
    Py_ssize_t k = 0;
    const char *metric = nullptr, *isa = "auto";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOn|$ss:top_k", const_cast<char**>(names), &vectors, &queries,
                                     &k, &metric, &isa))
      throw python::Raised();
    if (metric == nullptr) python::raise(PyExc_TypeError, "top_k needs the keyword argument 'metric'.");
    return search(vectors, queries, k, metric_of(metric), isa);
  });
}

inline PyObject* isa(PyObject*, PyObject*) {
  return answer([] { return python::text(sage::best_isa() == sage::Isa::avx2 ? "avx2" : "scalar"); });
}

}  // namespace bindings
