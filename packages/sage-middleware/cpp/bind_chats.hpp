// A plain chat that comes without wishes in its headers, as the control plane takes it in: `classify.parse`.
#pragma once

#include <algorithm>

#include "bind_requests.hpp"
#include "slots.hpp"

namespace bindings {

// The classes that it is told in, and what is the same for all of them.
struct Telling {
  python::Kept job = python::member("sage.middleware.control_plane.types", "Job");
  python::Kept call = python::member("sage.middleware.engines.port", "Call");
  python::Kept parsed = python::member("sage.middleware.control_plane.facts", "Parsed");
  python::Kept route = python::member("sage.middleware.engines.port", "CHAT");
  python::Kept request_class = python::attribute(python::member("sage.common.telemetry", "RequestClass"), "CHAT");
  python::Kept needs = python::member("sage.middleware.control_plane.plain", "CHAT_NEEDS");
  std::size_t bytes_per_token = PyLong_AsSize_t(
      python::Kept(python::member("sage.middleware.control_plane.facts", "BYTES_PER_TOKEN")).get());
  python::Kept zero = python::number(0LL), text = python::word("");
};

inline PyObject* parse_chat(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 4, "parse_chat");
    const std::string_view body = python::bytes(args[0], "body");
    PyObject *ident = args[1], *tenant = args[2];
    if (!PyUnicode_Check(ident)) python::wrong_type("ident", "a str", ident);
    if (!PyUnicode_Check(tenant)) python::wrong_type("tenant", "a str", tenant);
    if (!PyBool_Check(args[3])) python::wrong_type("blocks", "a bool", args[3]);
    static const Telling& to = *new Telling;  // never freed, as `python::Kept`
    std::vector<std::uint64_t> hashes;
    sage::Chat chat;
    if (!reader().chat(body, chat, args[3] == Py_True ? &hashes : nullptr)) return python::none();
    const Ref size = python::integer(body.size()), model = name_of(chat.model), most = integer_or_none(chat.max_tokens),
              tokens = python::integer(std::max<std::size_t>(1, body.size() / to.bytes_per_token)),
              blocks = integers(hashes), stream = python::boolean(chat.stream),
              usage = python::boolean(chat.include_usage);
    PyObject *needs = PyList_GET_ITEM(to.needs.get(), static_cast<Py_ssize_t>(chat.needs));
    PyObject *none = Py_None, *no = Py_False;
    const Ref job = python::call(to.job.get(), ident, model.get(), to.request_class.get(), tenant, needs, size.get(),
                                 tokens.get(), most.get(), to.zero.get(), size.get(), none, to.zero.get(), blocks.get(),
                                 to.text.get(), stream.get(), no, to.text.get(), no);
    const Ref call = python::call(to.call.get(), ident, to.route.get(), args[0], stream.get(), usage.get());
    return python::call(to.parsed.get(), job.get(), call.get(), none);
  });
}

}  // namespace bindings
