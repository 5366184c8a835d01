// The vectors of an embeddings answer, for Python and for the steps of calls.
#pragma once

#include "sage/vectors.hpp"
#include "slots.hpp"

namespace bindings {

using python::answer;
using python::Ref;

// Reads each answer once: who takes it in, and who looks at its vectors next, ask for the same object.
class Answered {  // belongs to the lock's holder
 public:
  // Null where it is not plain; else good until the next is asked for.
  const sage::Vectors* of(PyObject* body) {
    if (body != body_.get()) {
      body_ = Ref();
      plain_ = reader_.read(python::bytes(body, "body"), found_);
      body_ = Ref::to(body);
    }
    return plain_ ? &found_ : nullptr;
  }

  void forget() { body_ = Ref(); }

 private:
  sage::VectorReader reader_;
  sage::Vectors found_;
  Ref body_;
  bool plain_ = false;
};

inline Answered& answered() {
  static Answered& one = *new Answered;  // never freed, as `python::Kept`
  return one;
}

inline Ref tokens_used(std::int64_t prompt) {
  static const python::Kept usage = python::member("sage.middleware.engines.port", "Usage");
  return python::call(usage.get(), python::number(static_cast<long long>(prompt)).get(), python::number(0LL).get());
}

// `calls.read_answer(body, texts)` of a plain answer, else None.
inline PyObject* read_vectors(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 2, "read_vectors");
    PyObject *body = args[0], *texts = args[1];
    if (!PyList_CheckExact(texts)) python::wrong_type("texts", "a list", texts);
    const auto number = static_cast<std::size_t>(PyList_GET_SIZE(texts));
    std::vector<std::int64_t> sizes;
    std::int64_t all = 0;
    for (std::size_t i = 0; i < number; ++i) {
      sizes.push_back(static_cast<std::int64_t>(
          python::bytes(PyList_GET_ITEM(texts, static_cast<Py_ssize_t>(i)), "a text").size()));
      all += sizes.back();
    }
    const sage::Vectors* found = answered().of(body);
    constexpr std::int64_t most = INT32_MAX;  // so that no product overflows
    if (found == nullptr || found->places.size() != number || found->tokens > most || all > most || all == 0)
      return python::none();

    static const python::Kept vector = python::member("sage.middleware.control_plane.calls", "Vector"),
                              raw = python::member("msgspec", "Raw");
    const std::string_view text = python::bytes(body, "body");
    const Ref vectors = Ref::made(PyList_New(static_cast<Py_ssize_t>(number)));
    std::int64_t passed = 0, given = 0;
    for (std::size_t i = 0; i < number; ++i) {
      const sage::Place at = found->places[i];
      const Ref copy = Ref::made(PyBytes_FromStringAndSize(text.data() + at.begin, at.end - at.begin));
      passed += sizes[i];
      const std::int64_t upto = found->tokens * passed / all;  // the running sum is rounded, so that shares add up
      const Ref share = python::number(static_cast<long long>(upto - std::exchange(given, upto)));
      PyList_SET_ITEM(vectors.get(), static_cast<Py_ssize_t>(i),
                      python::call(vector.get(), python::call(raw.get(), copy.get()).get(), share.get()).release());
    }
    const std::int64_t tokens = found->tokens;
    answered().forget();
    return python::tuple(Ref(vectors), tokens_used(tokens));
  });
}

}  // namespace bindings
