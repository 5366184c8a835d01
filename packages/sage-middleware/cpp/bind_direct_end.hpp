// The end of a generation, or of a call for vectors, that was served at the first attempt; see `bind_direct.hpp`.
#pragma once

#include "bind_direct.hpp"

namespace bindings {

// An attempt that has ended, and what it was for: of several requests the one that is looked at.
struct Ending {
  PyObject *core, *at, *attempts, *ordinal, *attempt, *engine, *slices, *record, *job, *usage;
};

// Whether a slice is all that is missing of a request that runs nowhere else, and has no answer yet.
inline bool completes(PyObject* slice) {
  const RecordSlots& of = shapes().record;
  PyObject* record = PyTuple_GET_ITEM(slice, 0);
  const long long units = whole(PyTuple_GET_ITEM(slice, 2)) - whole(PyTuple_GET_ITEM(slice, 1));
  return is(record, of.type) && whole(of.units(record)) == units && whole(of.left(record)) == units &&
         PyUnicode_Compare(of.outcome(record), shapes().running.get()) == 0 && of.usage(record) == Py_None &&
         PyTuple_GET_SIZE(of.running(record)) == 1;
}

// Looks at everything that the plain case asks of an attempt by its `ordinal` and its `usage`; what is found is
// filled in, but for the time. Nothing has changed when it says no.
inline bool meet(Ending& one) {
  const Shapes& all = shapes();
  if (!is(all.placement.policy(all.core._placement(one.core)), all.hybrid.type)) return false;
  one.attempts = all.core._attempts(one.core);
  one.attempt = found(one.attempts, one.ordinal);
  if (one.attempt == nullptr || !is(one.attempt, all.attempt.type)) return false;
  one.slices = all.attempt.slices(one.attempt);
  one.engine = all.attempt.engine(one.attempt);
  if (all.attempt.twin(one.attempt) != Py_None || !is(one.engine, all.engine.type)) return false;
  PyObject* silence = all.engine.silence(one.engine);
  if (!(generates(one.engine) ? PyList_GET_SIZE(one.slices) == 1 : embeds(one.engine)) ||
      all.silence.degraded(silence) != Py_False ||
      whole(all.breaker.faults(all.engine.breaker(one.engine))) != 0 ||
      PyUnicode_Compare(all.engine.state(one.engine), all.draining.get()) == 0)
    return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(one.slices); ++i)
    if (!completes(PyList_GET_ITEM(one.slices, i))) return false;
  return is(one.usage, all.usage.type);
}

// `Estimator.finished`, which is asked only where it would learn something, or note when an answer came.
inline void learn(const Ending& one) {
  const Shapes& all = shapes();
  bool learns = all.attempt.learns(one.attempt) == Py_True || !generates(one.engine);
  if (generates(one.engine) && all.job.stream(one.job) == Py_False)
    learns = real(one.at) >= real(all.engine.learn_at(one.engine)) || real(all.engine.learned(one.engine)) <= all.known;
  static const python::Kept finished = python::word("finished");
  if (learns) python::ask(all.core._estimator(one.core), finished, one.attempt, one.usage, one.at);
}

// `EngineLoad.give_back`, and one more that was served.
inline void give_back(const Ending& one) {
  const Shapes& all = shapes();
  const EngineSlots& at = all.engine;
  advance(one.engine, one.at);
  python::check(PyDict_DelItem(at.attempts(one.engine), one.ordinal));
  const long long running = whole(at.running(one.engine)) - 1;
  count_running(one.engine, running);
  grow(at.outstanding_tokens, one.engine, -whole(all.attempt.outstanding(one.attempt)));
  if (all.attempt.first_byte(one.attempt) == Py_None)
    grow(at.prefill_tokens, one.engine, -whole(all.attempt.tokens(one.attempt)));
  if (!generates(one.engine)) {
    double free_at = real(one.at);
    PyObject *ordinal = nullptr, *other = nullptr;
    for (Py_ssize_t i = 0; PyDict_Next(at.attempts(one.engine), &i, &ordinal, &other);)
      free_at += real(all.attempt.service(other));
    at.busy_until.put(one.engine, number(free_at));
  }
  if (running == 0) at.idle_since.put(one.engine, Ref::to(one.at));
  grow(at.served, one.engine, 1);
}

// `Hybrid.settle`.
inline void settle(const Ending& one) {
  const Shapes& all = shapes();
  const RecordSlots& of = all.record;
  const double tokens = real(of.prompt_tokens(one.record));
  const double seconds = generates(one.engine)
                             ? Cost(all.engine.llm(one.engine))
                                   .seconds(tokens, real(all.usage.completion_tokens(one.usage)),
                                            real(all.engine.max_running(one.engine)))
                             : seconds_of_texts(one.engine, tokens, real(of.units(one.record)));
  const double charged = real(of.charged(one.record));
  if (seconds == charged) return;
  PyObject* policy = all.placement.policy(all.core._placement(one.core));
  spend(account_of(all.hybrid._accounts(policy), one.record).get(), seconds - charged);
  of.charged.put(one.record, number(seconds));
}

// `LogHistogram.add`.
inline void observe(PyObject* histogram, double value) {
  PyObject* fresh = shapes().histogram._fresh(histogram);
  python::check(PyList_Append(fresh, number(value).get()));
  static const python::Kept sorted = python::word("_sorted");
  if (static_cast<double>(PyList_GET_SIZE(fresh)) >= shapes().lump) python::ask(histogram, sorted);
}

// The tally of its tenant and class, if it was asked for last; else null.
inline PyObject* tally_of(const Ending& one, PyObject* books) {
  const Shapes& all = shapes();
  PyObject* newest = all.newest._newest(all.books._tenants(books));
  if (newest == Py_None || PyUnicode_Compare(PyTuple_GET_ITEM(newest, 0), all.job.tenant(one.job)) != 0) return nullptr;
  return found(all.classes.tallies(PyTuple_GET_ITEM(newest, 1)), all.job.request_class(one.job));
}

// Whether its class is one of those that ask for text.
inline bool writes(PyObject* job) {
  const int found = PySet_Contains(shapes().generates.get(), shapes().job.request_class(job));
  python::check(found);
  return found == 1;
}

// What is booked of the calls to an engine.
inline Ref calls_of(PyObject* books, PyObject* engine) {
  const Shapes& all = shapes();
  PyObject *engines = all.books._engines(books), *newest = all.newest._newest(engines);
  if (newest != Py_None && PyUnicode_Compare(PyTuple_GET_ITEM(newest, 0), all.engine.name(engine)) == 0)
    return Ref::to(PyTuple_GET_ITEM(newest, 1));
  static const python::Kept get = python::word("get");
  return python::ask(engines, get, all.engine.name(engine));
}

// `Books._check_prediction`, of what ran once.
inline void check_prediction(const Ending& one, PyObject* books) {
  const Shapes& all = shapes();
  const double predicted = real(all.record.predicted(one.record));
  const double actual = real(one.at) - real(all.record.dispatched(one.record));
  if (!(predicted > 0.0) || whole(all.record.attempts(one.record)) != 1 || !(actual > 0.0)) return;
  const Ref calls = calls_of(books, one.engine);
  observe(all.calls.error(calls.get()), std::fabs(predicted - actual) / actual);
  observe(all.calls.ratio(calls.get()), actual / predicted);
}

// `Books.ended`; a stream's times, and what was sent more than once, are left to it.
inline void book(const Ending& one) {
  const Shapes& all = shapes();
  const RecordSlots& of = all.record;
  PyObject* books = all.core.books(one.core);
  PyObject *tally = tally_of(one, books), *tokens = found(all.books.tokens(books), all.job.model(one.job));
  if (tally == nullptr || tokens == nullptr || all.job.stream(one.job) != Py_False ||
      whole(of.retries(one.record)) != 0 || whole(of.hedges(one.record)) != 0 ||
      generates(one.engine) != writes(one.job)) {
    static const python::Kept ended = python::word("ended");
    python::ask(books, ended, one.record, one.at);
    return;
  }
  const double arrived = real(of.arrived(one.record)), total = real(one.at) - arrived;
  observe(all.tally.queue(tally), real(of.dispatched(one.record)) - arrived);
  grow(all.tally.done, tally, 1);
  observe(all.tally.total(tally), total);
  PyObject* slo = of.slo(one.record);
  PyObject *most = all.slo.total(slo), *ttft = all.slo.ttft(slo), *tpot = all.slo.tpot(slo);
  PyObject* usage = of.usage(one.record);
  const long long written = whole(all.usage.completion_tokens(usage));
  bool met = most == Py_None || total <= real(most);
  if (!generates(one.engine)) {
    check_prediction(one, books);
  } else if (ttft != Py_None && !(tpot == Py_None && written > 1))
    met = met && total <= real(ttft) + (tpot == Py_None ? 0.0 : real(tpot)) *
                                           static_cast<double>(std::max(written - 1, 0LL));
  if (met) grow(all.tally.met, tally, 1);
  const long long sums[] = {whole(all.usage.prompt_tokens(usage)), written};
  for (Py_ssize_t i = 0; i < 2; ++i)
    python::check(PyList_SetItem(tokens, i, number(whole(PyList_GET_ITEM(tokens, i)) + sums[i]).release()));
}

// `Requests._end`, of what is done.
inline void close(const Ending& one) {
  const Shapes& all = shapes();
  const RecordSlots& of = all.record;
  of.outcome.put(one.record, all.done);
  of.ended.put(one.record, Ref::to(one.at));
  python::check(PyDict_DelItem(all.core._live(one.core), all.job.id(one.job)));
  PyObject* counts = found(all.lanes.counts(all.core._lanes(one.core)), all.job.request_class(one.job));
  grow(all.counts.completed, counts, 1);
  of.cached.put(one.record, python::none());
  if (PyTuple_GET_SIZE(all.job.blocks(one.job)) > all.few) {
    static const python::Kept slim = python::member("sage.middleware.control_plane.requests", "without_blocks");
    of.job.put(one.record, python::call(slim.get(), one.job));
  }
}

// `usage_of` a request that this call alone has answered.
inline Ref usage_of(const Ending& one) {
  const Shapes& all = shapes();
  if (PyList_GET_SIZE(one.slices) == 1) return Ref::to(one.usage);
  const double in_call = std::max(real(all.attempt.tokens(one.attempt)), 1.0);
  const double share = real(all.record.prompt_tokens(one.record)) / in_call;
  const double tokens = std::nearbyint(real(all.usage.prompt_tokens(one.usage)) * share);
  const Ref read = number(static_cast<long long>(tokens));
  return python::call(all.usage.type.get(), read.get(), all.usage.completion_tokens(one.usage));
}

// `Core._finished` of one that was met, but for what waits.
inline void finish(Ending& one) {
  const Shapes& all = shapes();
  const Ref attempt = Ref::to(one.attempt), slices = Ref::to(one.slices);
  const auto turn_to = [&](Py_ssize_t slice) {
    one.record = PyTuple_GET_ITEM(PyList_GET_ITEM(one.slices, slice), 0);
    one.job = all.record.job(one.record);
  };
  turn_to(0);
  learn(one);
  sign_of_life(one.engine, one.at);
  python::check(PyDict_DelItem(one.attempts, one.ordinal));
  give_back(one);
  if (!generates(one.engine)) {
    const Ref calls = calls_of(all.core.books(one.core), one.engine);
    observe(all.calls.texts(calls.get()), real(all.attempt.texts(one.attempt)));
    observe(all.calls.tokens(calls.get()), real(all.attempt.tokens(one.attempt)));
  }
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(one.slices); ++i) {
    turn_to(i);
    const Ref job = Ref::to(one.job);  // the record lets go of one with many blocks
    all.record.running.put(one.record, all.empty);
    all.record.left.put(one.record, all.zero);
    all.record.usage.put(one.record, usage_of(one));
    settle(one);
    close(one);
    book(one);
  }
}

// `Core._finished`.
inline bool finish(PyObject* core, PyObject* event) {
  const Shapes& all = shapes();
  Ending one{};
  one.core = core;
  one.ordinal = all.finished.attempt(event);
  one.usage = all.finished.usage(event);
  one.at = all.finished.at(event);
  if (!meet(one)) return false;
  finish(one);
  static const python::Kept place = python::word("_place");
  if (whole(all.lanes.waiting(all.core._lanes(core))) != 0) python::ask(core, place, one.at);
  return true;
}

// Takes an event in, if it is of the plain case: `direct(core, event, actions)`, as `Core.handle` would.
inline PyObject* direct(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return answer([&] {
    python::expect(count, 3, "direct");
    const Shapes& all = shapes();
    if (!is(args[0], all.core.type)) return python::boolean(false);
    if (!PyList_CheckExact(args[2])) python::wrong_type("actions", "a list", args[2]);
    if (is(args[1], all.arrived.type)) return python::boolean(arrive(args[0], args[1], args[2]));
    if (is(args[1], all.finished.type)) return python::boolean(finish(args[0], args[1]));
    return python::boolean(false);
  });
}

}  // namespace bindings
