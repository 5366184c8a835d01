// A call that no task awaits, from the newcomer to its answer: what `Desk.begin`, `Upstreams._told`, `HttpPool.start`
// and `Connection.data_received` do in the case that nearly all chats and single texts are. Whatever is not plain is
// left to those before anything has changed.
#pragma once

#include <string>

#include "bind_direct_end.hpp"
#include "bind_flights.hpp"
#include "bind_usage.hpp"
#include "bind_vectors.hpp"
#include "sage/heads.hpp"

namespace bindings {

inline Ref now_of(PyObject* plane) {
  static const python::Kept now = python::word("now");
  return python::ask(call_shapes().plane._clock(plane), now);
}

// The core of a control plane that is at its usual work, or null.
inline PyObject* core_of(PyObject* plane) {
  const CallShapes& all = call_shapes();
  if (!is(plane, all.plane.type) || all.plane._closing(plane) != Py_False || all.plane._trace(plane) != Py_None)
    return nullptr;
  PyObject* core = all.plane._core(plane);
  if (!is(core, shapes().core.type) || all.roster.next_probe(shapes().core._roster(core)) != Py_None) return nullptr;
  return core;
}

// `EngineTable.check`: whether an engine is known to be made for it, and to have room.
inline bool fits(PyObject* core, PyObject* job) {
  const Shapes& all = shapes();
  const Ref key = python::tuple(Ref::to(all.job.model(job)), Ref::to(all.job.needs(job)));
  PyObject* room = found(all.table._served(all.core.engines(core)), key.get());
  PyObject* most = all.job.max_tokens(job);
  return room != nullptr && (most == Py_None || real(most) <= real(room));
}

// Whether the first of a heap of (time, …) is before a time.
inline bool first_before(PyObject* heap, double at) {
  return PyList_GET_SIZE(heap) != 0 && real(PyTuple_GET_ITEM(PyList_GET_ITEM(heap, 0), 0)) < at;
}

// `Runner._carry_out`, its last part: `Core.wakes_before`, and the timer.
inline void arm(PyObject* plane, PyObject* core) {
  const Shapes& all = shapes();
  const double due = real(call_shapes().plane._timer_due(plane));
  PyObject* attempts = all.core._attempts(core);
  if (!(real(all.core._next_look(core)) < due) && whole(all.lanes.waiting(all.core._lanes(core))) == 0 &&
      !first_before(all.attempts._presumed(attempts), due) && !first_before(all.attempts._late(attempts), due))
    return;
  static const python::Kept name = python::word("_arm");
  python::ask(plane, name);
}

// `Upstreams.begin` of a call that lends the engine no threads; false where a task has to make it.
inline bool begin(PyObject* upstreams, PyObject* up, PyObject* engine, PyObject* job, PyObject* call) {
  static const python::Kept told = python::word("_told"), begins = python::word("begin"), lands = python::word("_land");
  const CallShapes& live = call_shapes();
  if (live.call.route(call) == live.embeddings.get()) {
    const Ref flight = take_off(upstreams, job, call);
    if (flight.get() == Py_None) return false;
    live.upstream.flight.put(up, flight);
  }
  try {
    const Ref method = Ref::made(PyObject_GetAttr(upstreams, told.get()));
    const Ref over = python::call(live.partial.get(), method.get(), up);
    live.upstream.untasked.put(up, python::ask(engine, begins, call, over.get()));
  } catch (const python::Raised&) {  // the task meets it again, and tells
    if (!PyErr_ExceptionMatches(PyExc_Exception)) throw;
    PyErr_Clear();
  }
  if (live.upstream.untasked(up) != Py_None) return true;
  python::ask(upstreams, lands, up);
  return false;
}

// `Desk.begin(job, call, sink, told)` with the control plane as its first argument: the ticket, or None.
inline PyObject* begin_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&]() -> Ref {
    python::expect(count, 5, "begin_call");
    const Shapes& all = shapes();
    const CallShapes& live = call_shapes();
    PyObject *plane = args[0], *job = args[1], *call = args[2], *sink = args[3], *told = args[4];
    PyObject* core = core_of(plane);
    if (core == nullptr || !is(job, all.job.type) || !is(call, live.call.type) || !fits(core, job)) return python::none();
    PyObject *tickets = live.plane._tickets(plane), *ident = all.job.id(job), *none = Py_None;
    if (found(tickets, ident) != nullptr) return python::none();
    const Ref at = now_of(plane);
    Newcomer one{};
    one.core = core;
    one.job = job;
    one.at = at.get();
    if (!meet(one)) return python::none();

    const Sent sent = send(one);
    PyObject *unit = all.one.get(), *nothing = all.zero.get();
    const Ref ticket = python::call(live.ticket.type.get(), job, call, sink, none, unit, unit);
    live.ticket.told.put(ticket.get(), Ref::to(told));
    live.ticket.record.put(ticket.get(), sent.record);
    const Ref part = python::call(live.part.type.get(), ticket.get(), nothing, unit);
    const Ref parts = Ref::made(PyList_New(1));
    PyList_SET_ITEM(parts.get(), 0, Ref(part).release());
    PyObject* engine = found(live.plane._engines(plane), all.engine.name(sent.engine));
    if (engine == nullptr) {
      PyErr_SetObject(PyExc_KeyError, all.engine.name(sent.engine));
      throw python::Raised();
    }
    const Ref up = python::call(live.upstream.type.get(), sent.ordinal.get(), engine, parts.get(), nothing, Py_False);
    live.ticket.own.put(ticket.get(), up);
    python::check(PyDict_SetItem(tickets, ident, ticket.get()));
    PyObject* upstreams = live.plane._upstreams(plane);
    python::check(PyDict_SetItem(live.upstreams._running(upstreams), sent.ordinal.get(), up.get()));
    static const python::Kept pulse = python::word("_start_pulse"), tasked = python::word("_tasked");
    if (live.plane._pulse(plane) == Py_None) python::ask(plane, pulse);
    arm(plane, core);
    observe(all.books.overhead(all.core.books(core)), real(now_of(plane).get()) - one.now);
    if (!begin(upstreams, up.get(), engine, job, call)) python::ask(plane, tasked, ticket.get());
    return ticket;
  });
}

// Whether an answer is that to one text, and its tokens are those that were told.
inline bool holds_one(PyObject* body, PyObject* usage) {
  const sage::Vectors* found = answered().of(body);
  return found != nullptr && found->places.size() == 1 && found->tokens == whole(shapes().usage.prompt_tokens(usage)) &&
         whole(shapes().usage.completion_tokens(usage)) == 0;
}

// `Upstreams._told(up, came)` with the control plane as its first argument: whether that was all.
inline PyObject* settle_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 3, "settle_call");
    const Shapes& all = shapes();
    const CallShapes& live = call_shapes();
    PyObject *plane = args[0], *up = args[1];
    Ending one{};
    one.core = core_of(plane);
    one.usage = args[2];
    if (one.core == nullptr || !is(up, live.upstream.type) || !is(one.usage, all.usage.type)) return python::boolean(false);
    PyObject *begun = live.upstream.untasked(up), *parts = live.upstream.parts(up);
    if (!is(begun, live.begun.type) || PyList_GET_SIZE(live.begun._parts(begun)) != 1 || PyList_GET_SIZE(parts) != 1 ||
        live.plane._timer(plane) == Py_None || whole(all.lanes.waiting(all.core._lanes(one.core))) != 0)
      return python::boolean(false);
    const Ref ticket = Ref::to(live.part.ticket(PyList_GET_ITEM(parts, 0)));
    PyObject* one_ticket = ticket.get();
    if (live.ticket.own(one_ticket) != up || live.ticket.closed(one_ticket) != Py_False ||
        live.ticket.outcome(one_ticket) != Py_None || live.ticket.answer(one_ticket) != Py_None ||
        live.ticket.error(one_ticket) != Py_None || live.ticket.waiter(one_ticket) != Py_None ||
        live.ticket.told(one_ticket) == Py_None)
      return python::boolean(false);
    one.ordinal = live.upstream.number(up);
    const Ref body = Ref::to(PyList_GET_ITEM(live.begun._parts(begun), 0)), flight = Ref::to(live.upstream.flight(up));
    const bool vectors = flight.get() != Py_None;
    if (!meet(one) || generates(one.engine) == vectors) return python::boolean(false);
    if (vectors && !(lonely(flight.get()) && holds_one(body.get(), one.usage))) return python::boolean(false);

    PyObject* upstreams = live.plane._upstreams(plane);
    live.upstream.untasked.put(up, python::none());
    python::check(PyDict_DelItem(live.upstreams._running(upstreams), one.ordinal));
    if (vectors) {
      live.upstream.flight.put(up, python::none());
      land(upstreams, flight.get());
    }
    live.ticket.own.put(one_ticket, python::none());
    live.ticket.outcome.put(one_ticket, all.done);
    static const python::Kept written = python::word("whole");
    python::ask(live.ticket.sink(one_ticket), written, live.json.get(), body.get());
    const Ref at = now_of(plane);
    one.at = at.get();
    finish(one);
    live.ticket.closed.put(one_ticket, python::boolean(true));
    const Ref ident = Ref::to(all.job.id(live.ticket.job(one_ticket)));
    python::check(PyDict_DelItem(live.plane._tickets(plane), ident.get()));
    const Ref told = Ref::to(live.ticket.told(one_ticket));
    live.ticket.told.put(one_ticket, python::none());
    PyObject* none = Py_None;
    python::call(told.get(), none);
    return python::boolean(true);
  });
}

inline Ref monotonic() { return Ref::made(PyObject_CallNoArgs(call_shapes().clock.get())); }

// `Connection.usable`.
inline bool usable(PyObject* transport) {
  static const python::Kept closing = python::word("is_closing");
  return transport != Py_None && python::ask(transport, closing).get() == Py_False;
}

// The bytes of a POST with a JSON body, behind a head that was made before.
inline Ref message_of(PyObject* head, PyObject* body) {
  const std::string_view kind = python::bytes(call_shapes().json_line.get(), "line"), first = python::bytes(head, "head"),
                         rest = python::bytes(body, "body");
  const std::string length = "content-length: " + std::to_string(rest.size()) + "\r\n\r\n";
  const Ref made = Ref::made(PyBytes_FromStringAndSize(
      nullptr, static_cast<Py_ssize_t>(first.size() + kind.size() + length.size() + rest.size())));
  char* to = PyBytes_AS_STRING(made.get());
  for (const std::string_view part : {first, kind, std::string_view(length), rest}) to += part.copy(to, part.size());
  return made;
}

// `HttpPool.start(method, path, receiver, over, body)` without headers, with the pool as its first argument: the
// connection, or None where Python has to look for one.
inline PyObject* start_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 6, "start_call");
    const CallShapes& live = call_shapes();
    const ConnectionSlots& at = live.connection;
    PyObject *pool = args[0], *receiver = args[3], *over = args[4], *body = args[5];
    if (!is(pool, live.pool.type) || !PyBytes_CheckExact(body) || PyBytes_GET_SIZE(body) == 0) return python::none();
    PyObject* idle = live.pool._idle(pool);
    const Py_ssize_t last = PyList_GET_SIZE(idle) - 1;
    if (last < 0) return python::none();
    const Ref connection = Ref::to(PyList_GET_ITEM(idle, last));
    PyObject* one = connection.get();
    const Ref key = python::tuple(Ref::to(args[1]), Ref::to(args[2]));
    PyObject* head = found(live.pool._heads(pool), key.get());
    const double now = real(monotonic().get());
    if (head == nullptr || !is(one, at.type) || real(at.idle_since(one)) < now - real(live.pool._keep_idle_s(pool)) ||
        !usable(at._transport(one)))
      return python::none();

    const Ref message = message_of(head, body);
    python::check(PyList_SetSlice(idle, last, last + 1, nullptr));
    static const python::Kept clear = python::word("_clear"), watch = python::word("watch"),
                              write = python::word("write");
    if (at._parsed(one) != Py_False) python::ask(one, clear);
    at._receiver.put(one, Ref::to(receiver));
    at._over.put(one, Ref::to(over));
    for (const Slot* no : {&at._started, &at._complete, &at._keep_alive}) no->put(one, python::boolean(false));
    at._untouched.put(one, python::boolean(true));
    at._wake.put(one, python::none());
    at._deadline.put(one, number(now + real(at._first_s(one))));
    at._end.put(one, number(now + real(at._total_s(one))));
    if (live.pool._timer(pool) == Py_None) python::ask(pool, watch);
    python::ask(at._transport(one), write, message.get());
    return connection;
  });
}

// `sse.usage_of`, of a plain answer; of vectors with the look that they get anyway.
inline Ref counted(PyObject* call, PyObject* body) {
  if (call_shapes().call.route(call) != call_shapes().embeddings.get()) return Ref::made(read_usage(nullptr, body));
  const sage::Vectors* found = answered().of(body);
  return found == nullptr || found->tokens == 0 ? python::none() : tokens_used(found->tokens);
}

// `Connection.data_received(data)` with the connection as its first argument, of a whole answer whose head has come
// before, to a call that no task awaits: whether that was so.
inline PyObject* take_answer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 2, "take_answer");
    const CallShapes& live = call_shapes();
    const ConnectionSlots& at = live.connection;
    PyObject* one = args[0];
    if (!is(one, at.type)) return python::boolean(false);
    const Ref begun = Ref::to(at._receiver(one));
    PyObject* pool = at._pool(one);
    if (!is(begun.get(), live.begun.type) || at._untouched(one) != Py_True || at._over(one) == Py_None ||
        !is(pool, live.pool.type))
      return python::boolean(false);
    PyObject* seen = live.pool.seen(pool);
    if (seen == Py_None) return python::boolean(false);
    PyObject* head = PyTuple_GET_ITEM(seen, 0);
    if (!is(head, live.head.type)) return python::boolean(false);
    const auto body = sage::body_after(
        python::bytes(args[1], "data"), python::bytes(live.head.before(head), "before"),
        python::bytes(live.head.after(head), "after"),
        static_cast<std::size_t>(whole(live.limits.body_bytes(live.pool.limits(pool)))));
    if (!body) return python::boolean(false);
    const Ref whole_body = Ref::made(PyBytes_FromStringAndSize(body->data(), static_cast<Py_ssize_t>(body->size())));
    const Ref usage = counted(live.begun._call(begun.get()), whole_body.get());
    if (usage.get() == Py_None) return python::boolean(false);

    at._untouched.put(one, python::boolean(false));
    for (const Slot* yes : {&at._started, &at._complete, &at._keep_alive, &at._used})
      yes->put(one, python::boolean(true));
    at._over.put(one, python::none());
    at._receiver.put(one, python::none());
    live.begun.status.put(begun.get(), number(200LL));
    const Ref parts = Ref::made(PyList_New(1));
    PyList_SET_ITEM(parts.get(), 0, Ref(whole_body).release());
    live.begun._parts.put(begun.get(), parts);
    PyObject* idle = live.pool._idle(pool);
    if (usable(at._transport(one)) && live.pool._closed(pool) == Py_False &&
        PyList_GET_SIZE(idle) < whole(live.pool._max_idle(pool))) {
      at.idle_since.put(one, monotonic());
      python::check(PyList_Append(idle, one));
    } else {
      static const python::Kept keep = python::word("keep");
      python::ask(pool, keep, one);
    }
    python::call(live.begun._told(begun.get()), usage.get());
    answered().forget();
    return python::boolean(true);
  });
}

}  // namespace bindings
