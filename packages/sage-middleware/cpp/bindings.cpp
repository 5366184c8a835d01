// Python bindings of the native operators: check everything, release the GIL, call the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "sage/prefix.hpp"
#include "sage/requests.hpp"
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

// ---- requests: short enough to be read under the lock ----

sage::Reader& reader() {  // belongs to the lock's holder, until it calls Python again
  static sage::Reader one;
  return one;
}

std::string_view view(const py::bytes& bytes) {
  return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

py::object integer_or_none(std::int64_t value) {
  return value == 0 ? py::object(py::none()) : py::object(py::int_(value));
}

py::tuple integers(const std::vector<std::uint64_t>& values) {
  py::tuple out(values.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    PyTuple_SET_ITEM(out.ptr(), static_cast<py::ssize_t>(i), py::int_(values[i]).release().ptr());
  return out;
}

// A name, as the very object that was returned for it last: whoever looks it up finds the same one at once.
py::object name_of(const std::string& text) {
  static std::string last;
  static PyObject* kept = nullptr;  // and never freed: at the end of the process there is no interpreter any more
  if (kept == nullptr || text != last) {
    py::str made(text);
    last = text;
    Py_XDECREF(std::exchange(kept, made.release().ptr()));
  }
  return py::reinterpret_borrow<py::object>(kept);
}

py::object read_chat(const py::bytes& body, bool blocks) {
  std::vector<std::uint64_t> hashes;
  sage::Chat chat;
  if (!reader().chat(view(body), chat, blocks ? &hashes : nullptr)) return py::none();
  return py::make_tuple(name_of(chat.model), chat.stream, chat.include_usage, integer_or_none(chat.max_tokens),
                        chat.needs, integers(hashes));
}

py::object read_embedding(const py::bytes& body) {
  sage::Embedding found;
  if (!reader().embedding(view(body), found)) return py::none();
  return py::make_tuple(name_of(found.model), found.texts, found.bytes, found.encoding_format,
                        integer_or_none(found.dimensions), found.alone);
}

py::tuple prompt_blocks(const py::bytes& text) {
  std::vector<std::uint64_t> hashes;
  sage::BlockHasher hasher(hashes);
  hasher.put(view(text));
  return integers(hashes);
}

// ---- the prefix index: engines by name ----

class PrefixIndex {
 public:
  explicit PrefixIndex(py::ssize_t capacity) : capacity_(checked(capacity)), index_(seed()) {}

  py::dict match(const py::tuple& blocks) const {
    py::dict found;
    index_.match(
        blocks.size(),
        [&](std::size_t at) { return hash(PyTuple_GET_ITEM(blocks.ptr(), static_cast<py::ssize_t>(at))); },
        [&](std::size_t engine, std::size_t count) { found[names_[engine]] = py::int_(count); });
    return found;
  }

  void insert(const py::str& name, const py::tuple& blocks) {
    blocks_.clear();
    for (const py::handle block : blocks) blocks_.push_back(hash(block.ptr()));
    index_.insert(number(name, capacity_), blocks_);
  }

  void drop(const py::str& name) {
    if (!numbers_.contains(name)) return;
    const auto at = numbers_[name].cast<std::size_t>();
    index_.drop(at);
    numbers_.attr("pop")(name);
    names_[at] = py::none();
  }

  void resize(const py::str& name, py::ssize_t blocks) {
    const std::size_t capacity = checked(blocks);
    index_.resize(number(name, capacity), capacity);
  }

  std::size_t size() const { return index_.size(); }

 private:
  static std::uint64_t seed() {
    const py::bytes drawn = py::module_::import("os").attr("urandom")(sizeof(std::uint64_t));
    std::uint64_t value = 0;
    std::memcpy(&value, view(drawn).data(), sizeof(value));
    return value;
  }

  static std::size_t checked(py::ssize_t blocks) {
    if (blocks >= 0) return static_cast<std::size_t>(blocks);
    const py::object error = py::module_::import("sage.common.errors").attr("UsageError");
    const std::string what = "A prefix index of " + std::to_string(blocks) + " blocks cannot be; 0 or more can.";
    PyErr_SetObject(error.ptr(), error(what).ptr());
    throw py::error_already_set();
  }

  static std::uint64_t hash(PyObject* block) {
    const std::uint64_t value = PyLong_AsUnsignedLongLong(block);
    if (value == UINT64_MAX && PyErr_Occurred()) throw py::error_already_set();
    return value;
  }

  // That of an engine, which is new with this capacity unless it is known. The lowest free one keeps sets small.
  std::size_t number(const py::str& name, std::size_t capacity) {
    if (PyObject* known = PyDict_GetItemWithError(numbers_.ptr(), name.ptr()); known != nullptr)
      return PyLong_AsSize_t(known);
    std::size_t at = 0;
    while (at < names_.size() && !names_[at].is_none()) ++at;
    if (at == names_.size()) names_.push_back(py::none());
    names_[at] = name;
    numbers_[name] = py::int_(at);
    index_.add(at, capacity);
    return at;
  }

  std::size_t capacity_;
  sage::PrefixIndex index_;
  py::dict numbers_;
  std::vector<py::object> names_;  // None where a number is free
  std::vector<std::uint64_t> blocks_;
};

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native operators of sage-middleware.";
  m.def("top_k", &top_k, py::arg("vectors"), py::arg("queries"), py::arg("k"), py::kw_only(), py::arg("metric"),
        py::arg("isa") = "auto");
  m.def("isa", [] { return std::string(sage::best_isa() == sage::Isa::avx2 ? "avx2" : "scalar"); });
  m.def("read_chat", &read_chat, py::arg("body"), py::arg("blocks"), py::pos_only());
  m.def("read_embedding", &read_embedding, py::arg("body"), py::pos_only());
  m.def("prompt_blocks", &prompt_blocks, py::arg("text"), py::pos_only());
  py::class_<PrefixIndex>(m, "PrefixIndex")
      .def(py::init<py::ssize_t>(), py::arg("capacity"))
      .def("match", &PrefixIndex::match, py::arg("blocks"))
      .def("insert", &PrefixIndex::insert, py::arg("engine"), py::arg("blocks"))
      .def("drop", &PrefixIndex::drop, py::arg("engine"))
      .def("resize", &PrefixIndex::resize, py::arg("engine"), py::arg("blocks"))
      .def("__len__", &PrefixIndex::size);
}
