// Plain chats and embeddings that come without wishes in their headers, as the control plane takes them in:
// `classify.parse`.
#pragma once

#include <algorithm>

#include "bind_requests.hpp"
#include "slots.hpp"

namespace bindings {

// The classes that they are told in, and what is the same for all of them.
struct Telling {
  python::Kept job = python::member("sage.middleware.control_plane.types", "Job");
  python::Kept call = python::member("sage.middleware.engines.port", "Call");
  python::Kept parsed = python::member("sage.middleware.control_plane.facts", "Parsed");
  python::Kept chat_route = python::member("sage.middleware.engines.port", "CHAT");
  python::Kept embedding_route = python::member("sage.middleware.engines.port", "EMBEDDINGS");
  python::Kept chat = python::attribute(python::member("sage.common.telemetry", "RequestClass"), "CHAT");
  python::Kept interactive =
      python::attribute(python::member("sage.common.telemetry", "RequestClass"), "EMBED_INTERACTIVE");
  python::Kept chat_needs = python::member("sage.middleware.control_plane.plain", "CHAT_NEEDS");
  python::Kept embedding_needs = python::member("sage.middleware.control_plane.plain", "EMBEDDING_NEEDS");
  std::size_t bytes_per_token = PyLong_AsSize_t(
      python::Kept(python::member("sage.middleware.control_plane.facts", "BYTES_PER_TOKEN")).get());
  python::Kept zero = python::number(0LL), text = python::word(""), nothing = Ref::made(PyTuple_New(0));
};

inline const Telling& telling() {
  static const Telling& all = *new Telling;  // never freed, as `python::Kept`
  return all;
}

inline PyObject* str_of(PyObject* given, const char* name) {
  if (!PyUnicode_Check(given)) python::wrong_type(name, "a str", given);
  return given;
}

// `facts.estimate`.
inline std::size_t estimated(std::size_t bytes) { return std::max<std::size_t>(1, bytes / telling().bytes_per_token); }

inline PyObject* parse_chat(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 4, "parse_chat");
    const std::string_view body = python::bytes(args[0], "body");
    PyObject *ident = str_of(args[1], "ident"), *tenant = str_of(args[2], "tenant");
    if (!PyBool_Check(args[3])) python::wrong_type("blocks", "a bool", args[3]);
    const Telling& to = telling();
    std::vector<std::uint64_t> hashes;
    sage::Chat chat;
    if (!reader().chat(body, chat, args[3] == Py_True ? &hashes : nullptr)) return python::none();
    const Ref size = python::integer(body.size()), model = name_of(chat.model), most = integer_or_none(chat.max_tokens),
              tokens = python::integer(estimated(body.size())),
              blocks = integers(hashes), stream = python::boolean(chat.stream),
              usage = python::boolean(chat.include_usage);
    PyObject *needs = PyList_GET_ITEM(to.chat_needs.get(), static_cast<Py_ssize_t>(chat.needs));
    PyObject *none = Py_None, *no = Py_False;
    const Ref job = python::call(to.job.get(), ident, model.get(), to.chat.get(), tenant, needs, size.get(),
                                 tokens.get(), most.get(), to.zero.get(), size.get(), none, to.zero.get(), blocks.get(),
                                 to.text.get(), stream.get(), no, to.text.get(), no);
    const Ref call = python::call(to.call.get(), ident, to.chat_route.get(), args[0], stream.get(), usage.get());
    return python::call(to.parsed.get(), job.get(), call.get(), none);
  });
}

// `facts.batch_key`.
inline Ref batch_key(const sage::Embedding& found) {
  static SameText same;
  return same(found.model + '|' + (found.dimensions == 0 ? "" : std::to_string(found.dimensions)) + '|' +
              (found.encoding_format.empty() ? "float" : found.encoding_format));
}

inline PyObject* parse_embedding(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 5, "parse_embedding");
    const std::string_view body = python::bytes(args[0], "body");
    PyObject *ident = str_of(args[1], "ident"), *tenant = str_of(args[2], "tenant");
    const long long most_texts = python::whole(args[3]), most_tokens = python::whole(args[4]);
    const Telling& to = telling();
    sage::Embedding found;
    if (!reader().embedding(body, found)) return python::none();
    const std::size_t about = estimated(found.bytes);
    if (static_cast<long long>(found.texts) > most_texts || static_cast<long long>(about) > most_tokens)
      return python::none();
    const Ref size = python::integer(body.size()), model = name_of(found.model), tokens = python::integer(about),
              texts = python::integer(found.texts), bytes = python::integer(found.bytes),
              key = found.alone ? Ref(to.text) : batch_key(found);
    PyObject *none = Py_None, *no = Py_False, *yes = Py_True;
    const Ref job = python::call(to.job.get(), ident, model.get(), to.interactive.get(), tenant,
                                 to.embedding_needs.get(), size.get(), tokens.get(), none, texts.get(), bytes.get(),
                                 none, to.zero.get(), to.nothing.get(), key.get(), no, yes, to.text.get(), no);
    const Ref call = python::call(to.call.get(), ident, to.embedding_route.get(), args[0], no, no);
    return python::call(to.parsed.get(), job.get(), call.get(), none);
  });
}

}  // namespace bindings
