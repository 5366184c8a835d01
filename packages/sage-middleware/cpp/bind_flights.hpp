// A text that is computed now, for whoever else asks for it meanwhile: `control_plane/sharing.py` for calls that are
// for one text.
#pragma once

#include "bind_requests.hpp"
#include "call_slots.hpp"
#include "direct_look.hpp"

namespace bindings {

inline const CallShapes& call_shapes() {
  static const CallShapes& all = *new CallShapes;  // never freed, as `python::Kept`
  return all;
}

// `texts.key_of`.
inline Ref flight_key(PyObject* job) {
  const JobSlots& at = shapes().job;
  if (!empty(at.batch_key(job))) return Ref::to(at.batch_key(job));
  return Ref::made(PyUnicode_FromFormat("%c%U", 0, at.id(job)));
}

// `TextsInFlight.take_off` of the only text of a call; None where another call computes it, or it is not plain.
inline Ref take_off(PyObject* upstreams, PyObject* job, PyObject* call) {
  const CallShapes& live = call_shapes();
  const auto only = reader().only_text(python::bytes(live.call.body(call), "body"));
  if (!only) return python::none();
  const Ref text = Ref::made(PyBytes_FromStringAndSize(only->data(), static_cast<Py_ssize_t>(only->size())));
  PyObject* keys = live.texts._keys(live.upstreams._texts(upstreams));
  const Ref key = flight_key(job);
  Ref flights = Ref::owned(Py_XNewRef(found(keys, key.get())));
  if (flights.get() != nullptr && found(flights.get(), text.get()) != nullptr) return python::none();
  const Ref texts = Ref::made(PyList_New(1));
  PyList_SET_ITEM(texts.get(), 0, Ref(text).release());
  const Ref flight = python::call(live.flight.type.get(), key.get(), texts.get());
  if (flights.get() == nullptr) {
    flights = Ref::made(PyDict_New());
    python::check(PyDict_SetItem(keys, key.get(), flights.get()));
  }
  python::check(PyDict_SetItem(flights.get(), text.get(), flight.get()));
  return flight;
}

// Whether a flight is for one text, which nobody else waits for.
inline bool lonely(PyObject* flight) {
  const FlightSlots& at = call_shapes().flight;
  return PyList_CheckExact(at.texts(flight)) && PyList_GET_SIZE(at.texts(flight)) == 1 &&
         at.waited_for(flight) == Py_None;
}

// `TextsInFlight.land` of one that is lonely.
inline void land(PyObject* upstreams, PyObject* flight) {
  const CallShapes& live = call_shapes();
  PyObject *keys = live.texts._keys(live.upstreams._texts(upstreams)), *key = live.flight.key(flight);
  PyObject* flights = found(keys, key);
  if (flights == nullptr) {
    PyErr_SetObject(PyExc_KeyError, key);
    throw python::Raised();
  }
  python::check(PyDict_DelItem(flights, PyList_GET_ITEM(live.flight.texts(flight), 0)));
  if (PyDict_GET_SIZE(flights) == 0) python::check(PyDict_DelItem(keys, key));
  live.flight.landed.put(flight, python::boolean(true));
}

}  // namespace bindings
