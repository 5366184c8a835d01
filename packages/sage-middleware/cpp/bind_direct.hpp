// Generations and single texts that go straight to an engine: the steps of `control_plane/core.py` and what it
// calls, under the policy `hybrid`, for the case that nearly all requests are. Whatever is not plain is left to
// Python before anything has changed; what both do they do alike, to the last bit of a float.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "direct_look.hpp"

namespace bindings {

// Why the engine was chosen; the same words for all requests of which they are true.
inline Ref first_of(std::size_t count, double seconds) {
  static auto& known = *new std::map<std::pair<std::size_t, long long>, Ref>;  // never freed, as `python::Kept`
  const double thousandths = seconds * 1000.0, nearest = std::nearbyint(thousandths);
  const bool sure = std::fabs(thousandths - nearest) < 0.499 && nearest < 1e9;
  const std::pair key(count, sure ? static_cast<long long>(nearest) : -1);
  if (sure)
    if (const auto it = known.find(key); it != known.end()) return it->second;
  static const python::Kept round = python::member("builtins", "round");
  const Ref three = number(3LL);
  const Ref rounded = python::call(round.get(), number(seconds).get(), three.get());
  const Ref words =
      python::call(shapes().words.get(), python::integer(count).get(), rounded.get(), shapes().zero.get());
  if (known.size() >= 1024) known.clear();
  if (sure) known.emplace(key, words);
  return words;
}

struct Choice {
  PyObject* engine;
  double seconds;
  Ref reason;
};

inline Choice choose(const Newcomer& one) {
  const Open& best = one.prospect.best;
  const double share = real(shapes().hybrid._exploration(one.policy));
  if (share != 0.0) {
    static const python::Kept random = python::word("random"), explore = python::word("explore");
    if (real(python::ask(shapes().hybrid._random(one.policy), random).get()) < share) {
      const Ref open = Ref::made(PyList_New(0));
      for (const Open& other : one.prospect.open)
        python::check(PyList_Append(open.get(), python::tuple(Ref::to(other.engine), number(other.seconds)).get()));
      const Ref taken = python::ask(one.policy, explore, open.get(), number(best.seconds).get(),
                                    number(one.due - one.now).get());
      PyObject* engine = PyTuple_GET_ITEM(taken.get(), 0);
      const double seconds = real(PyTuple_GET_ITEM(taken.get(), 1));
      if (engine != best.engine) {
        static const python::Kept words =
            python::member("sage.middleware.control_plane.policies.forecast", "elsewhere");
        return {engine, seconds, python::call(words.get(), number(best.seconds).get())};
      }
    }
  }
  return {best.engine, best.seconds,
          first_of(static_cast<std::size_t>(PyList_GET_SIZE(one.engines)), best.seconds)};
}

// ---- what changes ------------------------------------------------------------------------------------------

// `_Account.used`, where the tenant waits nowhere; else `Accounts` itself.
inline void spend(PyObject* account, double seconds) {
  const AccountSlots& at = shapes().account;
  if (PyList_GET_SIZE(at.lanes(account)) != 0) {
    static const python::Kept spends = python::member("sage.middleware.control_plane.disciplines", "_spend");
    python::call(spends.get(), account, number(seconds).get());
  } else {
    at.used.put(account, number(real(at.used(account)) + seconds / real(at.weight(account))));
  }
}

inline Ref account_of(PyObject* accounts, PyObject* record) {
  const Shapes& all = shapes();
  PyObject* job = all.record.job(record);
  const Ref key = python::tuple(Ref::to(all.job.model(job)), Ref::to(all.job.tenant(job)));
  if (PyObject* account = found(all.accounts._accounts(accounts), key.get())) return Ref::to(account);
  static const python::Kept of = python::word("of");
  return python::ask(accounts, of, record);
}

// `Hybrid.charge`, of a record that says already that it was charged.
inline void charge(const Newcomer& one, PyObject* record) {
  const Shapes& all = shapes();
  PyObject* accounts = all.hybrid._accounts(one.policy);
  const Ref account = account_of(accounts, record);
  PyObject* served = all.accounts._served(accounts);
  PyObject* model = all.job.model(one.job);
  PyObject* most = found(served, model);
  PyObject* used = all.account.used(account.get());
  if (real(used) > (most == nullptr ? 0.0 : real(most))) python::check(PyDict_SetItem(served, model, used));
  spend(account.get(), one.cost);
  PyObject* floor = all.hybrid._floor(one.policy);
  if (all.floor.owed(floor) != Py_False) {
    static const python::Kept charge = python::word("charge");
    const Ref level = number(all.job.request_class(one.job) == all.batch.get() ? 1LL : 0LL);
    python::ask(floor, charge, model, level.get(), number(one.cost).get());
  }
}

// `EngineLoad._advance`.
inline void advance(PyObject* engine, PyObject* at) {
  const EngineSlots& slots = shapes().engine;
  const double passed = real(at) - real(slots._since(engine));
  if (!(passed > 0.0)) return;
  const double running = real(slots.running(engine));
  if (running != 0) {
    slots._running_seconds.put(engine, number(real(slots._running_seconds(engine)) + passed * running));
    slots._busy.put(engine, number(real(slots._busy(engine)) + passed));
    if (real(slots.prefill_tokens(engine)) > 0)
      slots._prefilling.put(engine, number(real(slots._prefilling(engine)) + passed));
  }
  slots._since.put(engine, Ref::to(at));
}

inline void count_running(PyObject* engine, long long running) {
  const EngineSlots& slots = shapes().engine;
  slots.running.put(engine, number(running));
  slots.free.put(engine, number(std::max(whole(slots._slots(engine)) - running, 0LL)));
}

inline void sign_of_life(PyObject* engine, PyObject* at) {
  const Shapes& all = shapes();
  PyObject* silence = all.engine.silence(engine);
  all.silence.since.put(silence, Ref::to(at));
  all.silence.degraded.put(silence, python::boolean(false));
}

inline void grow(const Slot& slot, PyObject* object, long long by) {
  slot.put(object, number(whole(slot(object)) + by));
}

// `EngineLoad.take`.
inline void take(PyObject* engine, PyObject* attempt, PyObject* ordinal, PyObject* at) {
  const Shapes& all = shapes();
  const EngineSlots& slots = all.engine;
  const long long running = whole(slots.running(engine));
  if (running == 0) sign_of_life(engine, at);
  advance(engine, at);
  python::check(PyDict_SetItem(slots.attempts(engine), ordinal, attempt));
  count_running(engine, running + 1);
  grow(slots.outstanding_tokens, engine, whole(all.attempt.outstanding(attempt)));
  grow(slots.prefill_tokens, engine, whole(all.attempt.tokens(attempt)));
  slots.last_dispatch.put(engine, Ref::to(ordinal));
  if (!generates(engine)) {
    const double free_at = std::max(real(slots.busy_until(engine)), real(at));
    slots.busy_until.put(engine, number(free_at + real(all.attempt.service(attempt))));
  }
}

// `History.add`.
inline void remember(PyObject* history, PyObject* ident, PyObject* record) {
  const HistorySlots& at = shapes().history;
  PyObject* records = at._records(history);
  static const python::Kept add = python::word("add"), pop = python::word("popitem");
  if (found(records, ident) != nullptr) {
    python::ask(history, add, record);
    return;
  }
  python::check(PyODict_SetItem(records, ident, record));
  if (PyDict_GET_SIZE(records) > whole(at._size(history))) python::ask(records, pop, Py_False);  // the oldest
}

// `Placement._detail`: how the candidates stood, for so many decisions a second.
inline Ref detail(const Newcomer& one, PyObject* record) {
  const PlacementSlots& at = shapes().placement;
  const double rate = real(at._details_per_s(one.placement));
  const double earned = real(at._details(one.placement)) + (one.now - real(at._details_at(one.placement))) * rate;
  if (std::min(earned, rate) >= 1.0) {
    static const python::Kept name = python::word("_detail");
    return python::ask(one.placement, name, record, one.engines, one.at);
  }
  at._details.put(one.placement, number(std::min(earned, rate)));
  at._details_at.put(one.placement, Ref::to(one.at));
  return shapes().empty;
}

// The record of a newcomer that is sent at once, and its only attempt: each field in its place.
inline Ref record_of(const Newcomer& one, const Choice& choice, PyObject* sequence, PyObject* ordinal) {
  const Shapes& all = shapes();
  const Ref tokens = number(one.tokens), due = number(one.due), cost = number(one.cost), quick = number(one.quick),
            seconds = number(choice.seconds), running = python::tuple(Ref::to(ordinal));
  PyObject *none = Py_None, *zero = all.zero.get(), *unit = all.one.get();
  return python::call(all.record.type.get(), one.job, sequence, all.placement.name(one.placement), one.at, none,
                      one.slo, due.get(), tokens.get(), one.p50.get(), one.p90.get(), unit, unit, one.at, unit,
                      all.empty.get(), cost.get(), quick.get(), all.never.get(), cost.get(), one.cached.get(),
                      all.running.get(), choice.reason.get(), all.engine.name(choice.engine), unit, zero, zero, zero,
                      none, zero, all.lane.ahead(one.lane), one.at, none, none, none, seconds.get(), running.get(),
                      all.empty.get());
}

inline Ref attempt_of(const Newcomer& one, const Choice& choice, PyObject* record, PyObject* ordinal, double* ready) {
  const Shapes& all = shapes();
  const EngineSlots& at = all.engine;
  const Cost cost(at.llm(choice.engine));
  const long long tokens = std::max(one.tokens - static_cast<long long>(cached_at(one, choice.engine)), 1LL);
  PyObject *ahead = at.prefill_tokens(choice.engine), *beside = at.running(choice.engine);
  PyObject* most = all.job.max_tokens(one.job);
  double silence = *ready = cost.ttft(real(ahead) + static_cast<double>(tokens), real(beside));
  if (all.job.stream(one.job) == Py_False)
    silence += real(one.p90.get()) * cost.tpot(real(at.max_running(choice.engine)));
  const Ref slices = Ref::made(PyList_New(1));
  PyList_SET_ITEM(slices.get(), 0, python::tuple(Ref::to(record), Ref(all.zero), Ref(all.one), Ref(all.one)).release());
  const Ref uncached = number(tokens), outstanding = number(one.tokens + (most == Py_None ? 0 : whole(most))),
            seconds = number(choice.seconds), quiet = number(silence), begins = number(*ready);
  return python::call(all.attempt.type.get(), ordinal, choice.engine, slices.get(), one.at, all.one.get(),
                      uncached.get(), outstanding.get(), ahead, beside, seconds.get(), all.nothing.get(), quiet.get(),
                      begins.get(), all.zero.get(), Py_False, Py_None, Py_False, Py_None, all.still.get());
}

// `EngineLoad.mark`.
inline Ref mark_of(PyObject* engine, PyObject* at) {
  const EngineSlots& slots = shapes().engine;
  advance(engine, at);
  PyObject* device = slots.device(engine);
  double others = 0.0;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(device); ++i) {
    PyObject* other = PyList_GET_ITEM(device, i);
    if (other == engine || generates(other) == generates(engine)) continue;
    const bool runs = whole(slots.running(other)) != 0;
    others += real(slots._busy(other)) + (runs ? real(at) - real(slots._since(other)) : 0.0);
  }
  return python::tuple(Ref::to(slots._running_seconds(engine)), Ref::to(slots._prefilling(engine)), number(others));
}

// The same of one text.
inline Ref attempt_of_text(const Newcomer& one, const Choice& choice, PyObject* record, PyObject* ordinal) {
  const Shapes& all = shapes();
  const EngineSlots& at = all.engine;
  const double service = seconds_of_texts(choice.engine, static_cast<double>(one.tokens), 1.0);
  const double silence = 4.0 * (service + std::max(0.0, real(at.busy_until(choice.engine)) - one.now));
  const Ref mark = mark_of(choice.engine, one.at), slices = Ref::made(PyList_New(1));
  PyList_SET_ITEM(slices.get(), 0, python::tuple(Ref::to(record), Ref(all.zero), Ref(all.one), Ref(all.one)).release());
  const Ref tokens = number(one.tokens), seconds = number(choice.seconds), lasts = number(service),
            quiet = number(silence);
  return python::call(all.attempt.type.get(), ordinal, choice.engine, slices.get(), one.at, all.one.get(), tokens.get(),
                      tokens.get(), at.prefill_tokens(choice.engine), at.running(choice.engine), seconds.get(),
                      lasts.get(), quiet.get(), all.nothing.get(), all.zero.get(), Py_False, Py_None, Py_False, Py_None,
                      mark.get());
}

// A newcomer that was sent: its record, the number of its attempt, and why it goes to this engine.
struct Sent {
  Ref record, ordinal, reason;
  PyObject* engine;
};

// `Core._arrived`, but for the action, of one that was met.
inline Sent send(const Newcomer& one) {
  const Shapes& all = shapes();
  PyObject* core = one.core;
  PyObject *attempts = all.core._attempts(core), *retries = all.core._retries(core), *placement = one.placement;
  grow(all.core._arrivals, core, 1);
  const double share = real(all.limits.retry_share(all.retries._limits(retries)));
  all.retries._left.put(retries, number(std::min(real(all.retries._left(retries)) + share, all.reserve)));
  PyObject *deadlines = all.chains._deadlines(all.core._chains(core)), *ident = all.job.id(one.job);
  if (found(deadlines, ident) != nullptr) python::check(PyDict_DelItem(deadlines, ident));
  const double hedges = real(all.placement._hedges(placement));
  if (hedges < all.hedge_reserve)
    all.placement._hedges.put(
        placement, number(hedges + real(all.limits.hedge_share(all.placement._limits(placement)))));

  const Choice choice = choose(one);
  grow(all.attempts._sent, attempts, 1);
  const Ref ordinal = Ref::to(all.attempts._sent(attempts));
  const Ref record = record_of(one, choice, all.core._arrivals(core), ordinal.get());
  const Ref candidates = detail(one, record.get());
  if (PyTuple_GET_SIZE(candidates.get()) != 0) all.record.candidates.put(record.get(), candidates);
  python::check(PyDict_SetItem(all.core._live(core), ident, record.get()));
  remember(all.core._history(core), ident, record.get());
  double ready = 0;
  const Ref attempt = one.text ? attempt_of_text(one, choice, record.get(), ordinal.get())
                               : attempt_of(one, choice, record.get(), ordinal.get(), &ready);
  charge(one, record.get());
  if (PyObject* blocks = all.job.blocks(one.job); PyTuple_GET_SIZE(blocks) != 0) {
    static const python::Kept insert = python::word("insert");
    python::ask(all.placement._prefixes(placement), insert, all.engine.name(choice.engine), blocks);
  }
  take(choice.engine, attempt.get(), ordinal.get(), one.at);
  python::check(PyDict_SetItem(attempts, ordinal.get(), attempt.get()));
  const bool hedgeable = all.job.hedgeable(one.job) == Py_True && PyList_GET_SIZE(one.engines) > 1;
  if (one.text ? hedgeable : all.job.stream(one.job) == Py_False) {
    const double at = one.now + (one.text ? real(all.quantile.value(all.engine.latency(choice.engine))) : ready);
    python::call(all.push.get(), one.text ? all.attempts._late(attempts) : all.attempts._presumed(attempts),
                 python::tuple(number(at), Ref(ordinal)).get());
  }
  return {record, ordinal, choice.reason, choice.engine};
}

// `Core._arrived`.
inline bool arrive(PyObject* core, PyObject* event, PyObject* actions) {
  const Shapes& all = shapes();
  if (all.arrived.deadline(event) != Py_None) return false;
  Newcomer one{};
  one.core = core;
  one.job = all.arrived.job(event);
  one.at = all.arrived.at(event);
  if (!meet(one)) return false;
  const Sent sent = send(one);
  const Ref slices =
      python::tuple(python::call(all.slice.get(), all.job.id(one.job), all.zero.get(), all.one.get()));
  python::check(PyList_Append(actions, python::call(all.dispatch.get(), sent.ordinal.get(), all.engine.name(sent.engine),
                                                    slices.get(), sent.reason.get(), all.zero.get(), Py_False)
                                           .get()));
  return true;
}

}  // namespace bindings
