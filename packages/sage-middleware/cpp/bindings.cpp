// Python bindings of the native operators: check everything, release the GIL, call the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "sage/topk.hpp"

namespace py = pybind11;

namespace {

std::string describe(const py::array& a) {
  return py::str(a.dtype()).cast<std::string>() + " of " + std::to_string(a.ndim()) + " dimensions";
}

sage::Matrix matrix(const py::array& a, const char* name) {
  const std::string what(name);
  if (!py::isinstance<py::array_t<float>>(a) || a.ndim() != 2)
    throw py::type_error(what + " has to be a float32 array of 2 dimensions; found " + describe(a) + ".");
  constexpr int wanted = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((a.flags() & wanted) != wanted)
    throw py::value_error(what + " has to be C-contiguous and aligned; use numpy.ascontiguousarray.");
  return {static_cast<const float*>(a.data()), static_cast<std::size_t>(a.shape(0)),
          static_cast<std::size_t>(a.shape(1))};
}

sage::Metric metric_of(const std::string& name) {
  if (name == "inner_product") return sage::Metric::inner_product;
  if (name == "cosine") return sage::Metric::cosine;
  throw py::value_error("metric has to be 'inner_product' or 'cosine'; found '" + name + "'.");
}

sage::Isa isa_of(const std::string& name) {
  if (name == "auto") return sage::best_isa();
  if (name != "scalar" && name != "avx2")
    throw py::value_error("isa has to be 'auto', 'scalar' or 'avx2'; found '" + name + "'.");
  const sage::Isa isa = name == "avx2" ? sage::Isa::avx2 : sage::Isa::scalar;
  if (!sage::supports(isa)) throw py::value_error("This machine does not have '" + name + "'.");
  return isa;
}

py::tuple top_k(const py::array& vectors, const py::array& queries, py::ssize_t k, const std::string& metric,
                const std::string& isa) {
  const sage::Matrix rows = matrix(vectors, "vectors"), asked = matrix(queries, "queries");
  if (rows.columns != asked.columns)
    throw py::value_error("vectors have " + std::to_string(rows.columns) + " columns and queries " +
                          std::to_string(asked.columns) + "; they have to agree.");
  if (k < 1) throw py::value_error("k has to be at least 1; found " + std::to_string(k) + ".");
  const sage::Metric how = metric_of(metric);
  const sage::Isa with = isa_of(isa);
  const std::size_t kept = std::min(static_cast<std::size_t>(k), rows.rows);
  py::array_t<std::int64_t> indices({asked.rows, kept});
  py::array_t<float> scores({asked.rows, kept});
  const std::span<std::int64_t> out_indices(indices.mutable_data(), static_cast<std::size_t>(indices.size()));
  const std::span<float> out_scores(scores.mutable_data(), static_cast<std::size_t>(scores.size()));
  {
    py::gil_scoped_release released;
    sage::top_k(rows, asked, static_cast<std::size_t>(k), how, with, out_indices, out_scores);
  }
  return py::make_tuple(indices, scores);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native operators of sage-middleware.";
  m.def("top_k", &top_k, py::arg("vectors"), py::arg("queries"), py::arg("k"), py::kw_only(), py::arg("metric"),
        py::arg("isa") = "auto");
  m.def("isa", [] { return std::string(sage::best_isa() == sage::Isa::avx2 ? "avx2" : "scalar"); });
}
