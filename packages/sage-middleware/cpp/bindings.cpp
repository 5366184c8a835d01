// The module `sage.middleware._native`: its functions check everything and call the cores in `sage/`.
#include "bind_calls.hpp"
#include "bind_direct_end.hpp"
#include "bind_heads.hpp"
#include "bind_histogram.hpp"
#include "bind_prefix.hpp"
#include "bind_requests.hpp"
#include "bind_topk.hpp"
#include "bind_usage.hpp"
#include "bind_vectors.hpp"
#include "bind_whole.hpp"

namespace {

using namespace bindings;

PyMethodDef functions[] = {
    {"top_k", python::method(top_k), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"isa", python::method(isa), METH_NOARGS, nullptr},
    {"parse_chat", python::method(parse_chat), METH_FASTCALL, nullptr},
    {"parse_embedding", python::method(parse_embedding), METH_FASTCALL, nullptr},
    {"read_chat", python::method(read_chat), METH_FASTCALL, nullptr},
    {"read_embedding", python::method(read_embedding), METH_O, nullptr},
    {"count_values", python::method(count_values), METH_FASTCALL, nullptr},
    {"read_usage", python::method(read_usage), METH_O, nullptr},
    {"read_vectors", python::method(read_vectors), METH_FASTCALL, nullptr},
    {"prompt_blocks", python::method(prompt_blocks), METH_O, nullptr},
    {"begin_call", python::method(begin_call), METH_FASTCALL, nullptr},
    {"settle_call", python::method(settle_call), METH_FASTCALL, nullptr},
    {"start_call", python::method(start_call), METH_FASTCALL, nullptr},
    {"take_answer", python::method(take_answer), METH_FASTCALL, nullptr},
    {"direct", python::method(direct), METH_FASTCALL, nullptr},
    {"body_after", python::method(body_after), METH_FASTCALL, nullptr},
    {},
};

PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT,
                      .m_name = "_native",
                      .m_doc = "Native operators of sage-middleware.",
                      .m_size = -1,
                      .m_methods = functions,
                      .m_slots = nullptr,
                      .m_traverse = nullptr,
                      .m_clear = nullptr,
                      .m_free = nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
  return answer([] {
    Ref made = Ref::made(PyModule_Create(&module));
    const Ref type = Ref::made(PyType_FromSpec(&index_spec));
    if (PyModule_AddObjectRef(made.get(), "PrefixIndex", type.get()) != 0) throw python::Raised();
    return made;
  });
}
