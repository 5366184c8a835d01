// The reader of requests for Python: short enough to be read under the lock.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "python.hpp"
#include "sage/requests.hpp"

namespace bindings {

using python::answer;
using python::Ref;

inline sage::Reader& reader() {  // belongs to the lock's holder, until it calls Python again
  static sage::Reader one;
  return one;
}

inline Ref integer_or_none(std::int64_t value) {
  return value == 0 ? python::none() : Ref::made(PyLong_FromLongLong(value));
}

inline Ref integers(const std::vector<std::uint64_t>& values) {
  Ref out = Ref::made(PyTuple_New(static_cast<Py_ssize_t>(values.size())));
  for (std::size_t i = 0; i < values.size(); ++i)
    PyTuple_SET_ITEM(out.get(), static_cast<Py_ssize_t>(i),
                     Ref::made(PyLong_FromUnsignedLongLong(values[i])).release());
  return out;
}

// Texts, each as the very object that was returned for it last: whoever looks it up finds the same one at once.
class SameText {
 public:
  Ref operator()(const std::string& text) {
    if (kept_ == nullptr || text != last_) {
      Ref made = python::text(text);
      last_ = text;
      Py_XDECREF(std::exchange(kept_, made.release()));
    }
    return Ref::to(kept_);
  }

 private:
  std::string last_;
  PyObject* kept_ = nullptr;  // and never freed: at the end of the process there is no interpreter any more
};

inline Ref name_of(const std::string& text) {
  static SameText same;
  return same(text);
}

inline PyObject* read_chat(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 2, "read_chat");
    const std::string_view body = python::bytes(args[0], "body");
    if (!PyBool_Check(args[1])) python::wrong_type("blocks", "a bool", args[1]);
    std::vector<std::uint64_t> hashes;
    sage::Chat chat;
    if (!reader().chat(body, chat, args[1] == Py_True ? &hashes : nullptr)) return python::none();
    return python::tuple(name_of(chat.model), python::boolean(chat.stream), python::boolean(chat.include_usage),
                         integer_or_none(chat.max_tokens), python::integer(chat.needs), integers(hashes));
  });
}

inline PyObject* read_embedding(PyObject*, PyObject* body) {
  return answer([&] {
    sage::Embedding found;
    if (!reader().embedding(python::bytes(body, "body"), found)) return python::none();
    return python::tuple(name_of(found.model), python::integer(found.texts), python::integer(found.bytes),
                         python::text(found.encoding_format), integer_or_none(found.dimensions),
                         python::boolean(found.alone));
  });
}

inline PyObject* prompt_blocks(PyObject*, PyObject* text) {
  return answer([&] {
    std::vector<std::uint64_t> hashes;
    sage::BlockHasher hasher(hashes);
    hasher.put(python::bytes(text, "text"));
    return integers(hashes);
  });
}

}  // namespace bindings
