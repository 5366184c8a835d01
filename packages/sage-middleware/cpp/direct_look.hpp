// What `bind_direct.hpp` has to know of a newcomer before anything changes: what it costs, where it would go.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "direct_shapes.hpp"

namespace bindings {

using python::answer;
using python::found;
using python::number;
using python::real;
using python::whole;

inline const Shapes& shapes() {
  static const Shapes& all = *new Shapes;  // never freed, as `python::Kept`
  return all;
}

inline bool is(PyObject* object, const Ref& type) {
  return Py_IS_TYPE(object, reinterpret_cast<PyTypeObject*>(type.get()));
}

inline bool empty(PyObject* text) { return PyUnicode_GET_LENGTH(text) == 0; }

// What an engine has learned of its times; see `cost.LlmCost`.
struct Cost {
  PyObject* object;
  double chunk, iteration_base, iteration_slope, per_token, tpot_base, tpot_slope;

  explicit Cost(PyObject* llm) : object(llm) {
    const CostSlots& at = shapes().cost;
    chunk = real(at.chunk(llm));
    iteration_base = real(at.iteration_base(llm));
    iteration_slope = real(at.iteration_slope(llm));
    per_token = real(at.per_token(llm));
    tpot_base = real(at.tpot_base(llm));
    tpot_slope = real(at.tpot_slope(llm));
  }

  double ttft(double tokens, double running) const {
    const double iterations = std::max(tokens / chunk, 1.0);
    return iterations * (iteration_base + iteration_slope * running) + per_token * tokens;
  }

  double tpot(double running) const {
    PyObject* weights = shapes().regression.weights(shapes().cost._tpot(object));
    return real(PyTuple_GET_ITEM(weights, 0)) + real(PyTuple_GET_ITEM(weights, 1)) * running;
  }

  double seconds(double tokens, double outputs, double max_running) const {
    return per_token * tokens + (tpot_slope + tpot_base / max_running) * outputs;
  }
};

struct Open {
  PyObject* engine;
  double seconds;
  long long last_dispatch;
};

// Where a generation would go: `LlmForecast.of` for engines that are all trusted, with its choice among them.
struct Prospect {
  std::vector<Open> open;
  Open best{nullptr, std::numeric_limits<double>::infinity(), 0};
  bool closed = false;

  void offer(const Open& one) {
    open.push_back(one);
    const double tie = shapes().tie;
    if (best.engine == nullptr || one.seconds < best.seconds * (1.0 - tie) ||
        (one.seconds < best.seconds * (1.0 + tie) && one.last_dispatch < best.last_dispatch))
      best = one;
  }
};

inline bool generates(PyObject* engine) { return shapes().engine.generates(engine) == Py_True; }

// Time of a batch on an embedding engine; see `cost.EmbedCost`.
struct TextCost {
  double interference, per_text, per_token, setup;
  PyObject* factors;

  explicit TextCost(PyObject* embed) {
    const TextCostSlots& at = shapes().text_cost;
    interference = real(at._interference(embed));
    per_text = real(at._per_text(embed));
    per_token = real(at._per_token(embed));
    setup = real(at._setup(embed));
    factors = at._threads(embed);
  }

  double seconds(double tokens, double texts, long long threads, bool beside) const {
    double base = setup + per_token * tokens + per_text * texts;
    if (threads > 1) {
      PyObject* learned = found(factors, number(threads).get());
      base *= learned != nullptr ? real(PyTuple_GET_ITEM(learned, 0))
                                 : std::pow(static_cast<double>(threads), -shapes().scaling);
    }
    return beside ? base * (1.0 + interference) : base;
  }
};

// `spec.cores or 1`.
inline long long threads_of(PyObject* engine) {
  return std::max(whole(shapes().spec.cores(shapes().engine.spec(engine))), 1LL);
}

// `EngineLoad.beside`.
inline bool beside(PyObject* engine) {
  const EngineSlots& at = shapes().engine;
  PyObject* device = at.device(engine);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(device); ++i) {
    PyObject* other = PyList_GET_ITEM(device, i);
    if (generates(other) != generates(engine) && whole(at.running(other)) != 0) return true;
  }
  return false;
}

// `EngineLoad.seconds` of so much on an engine that computes vectors.
inline double seconds_of_texts(PyObject* engine, double tokens, double texts) {
  return TextCost(shapes().engine.embed(engine)).seconds(tokens, texts, threads_of(engine), beside(engine));
}

// What is known of a newcomer and of where it is to go, before anything has changed.
struct Newcomer {
  PyObject *core, *job, *placement, *policy, *lanes, *lane, *engines, *reference, *estimator, *slo, *at;
  bool text = false;  // it asks for the vector of one, else it is a generation
  double now = 0, due = 0, cost = 0, quick = 0;
  long long tokens = 0;
  Ref cached = python::none(), p50, p90;
  Prospect prospect;
};

// Whether the job asks for nothing that no plain case has.
inline bool plain(PyObject* job) {
  const JobSlots& at = shapes().job;
  return at.slo(job) == Py_None && at.explain(job) == Py_False && empty(at.parent(job));
}

inline PyObject* lane_of(PyObject* lanes, PyObject* job) {
  const JobSlots& at = shapes().job;
  const Ref key = python::tuple(Ref::to(at.model(job)), Ref::to(at.needs(job)), Ref::to(at.batch_key(job)));
  return found(shapes().lanes._lanes(lanes), key.get());
}

// `PromptTokens.estimate`.
inline long long prompt_tokens(PyObject* prompts, PyObject* job) {
  const JobSlots& at = shapes().job;
  const double bytes = real(at.prompt_bytes(job));
  if (bytes == 0.0) return whole(at.prompt_tokens(job));
  static const python::Kept prior = python::attribute(shapes().prompts.type, "_PRIOR");
  PyObject* known = found(shapes().prompts._known(prompts), at.model(job));
  if (known == nullptr) known = prior.get();
  const double ratio = bytes * real(PyTuple_GET_ITEM(known, 1)) / real(PyTuple_GET_ITEM(known, 0));
  return std::max(static_cast<long long>(ratio + 0.5), 1LL);
}

// `OutputLengths.quantiles`: the objects that hold them, which thousands of records then share.
inline std::pair<Ref, Ref> lengths(PyObject* seen, PyObject* job) {
  const Shapes& all = shapes();
  static const python::Kept p50 = python::attribute(all.lengths.type, "_P50");
  static const python::Kept p90 = python::attribute(all.lengths.type, "_P90");
  PyObject* most = all.job.max_tokens(job);
  const long long size = most == Py_None ? -1 : std::bit_width(static_cast<unsigned long long>(whole(most)));
  const Ref key = python::tuple(Ref::to(all.job.model(job)), Ref::to(all.job.tenant(job)), number(size));
  std::pair<Ref, Ref> both(p50, p90);
  if (PyObject* known = found(all.lengths._known(seen), key.get()))
    both = {Ref::to(all.quantile.value(PyTuple_GET_ITEM(known, 0))),
            Ref::to(all.quantile.value(PyTuple_GET_ITEM(known, 1)))};
  if (most != Py_None) {
    const double bound = real(most);
    if (!(real(both.first.get()) < bound)) both.first = number(bound);
    if (!(real(both.second.get()) < bound)) both.second = number(bound);
  }
  return both;
}

// `Placement.cached`.
inline Ref cached_tokens(const Newcomer& one) {
  const Shapes& all = shapes();
  static const python::Kept match = python::word("match");
  Ref cached = python::ask(all.placement._prefixes(one.placement), match, all.job.blocks(one.job));
  const double bytes = real(all.job.prompt_bytes(one.job)), tokens = static_cast<double>(one.tokens);
  const double per_block = bytes != 0.0 ? all.block * tokens / bytes : all.block / all.bytes_per_token;
  PyObject *engine = nullptr, *blocks = nullptr;
  for (Py_ssize_t at = 0; PyDict_Next(cached.get(), &at, &engine, &blocks);) {
    const long long found = static_cast<long long>(real(blocks) * per_block);
    python::check(PyDict_SetItem(cached.get(), engine, number(std::min(found, one.tokens - 1)).get()));
  }
  return cached;
}

inline double cached_at(const Newcomer& one, PyObject* engine) {
  if (one.cached.get() == Py_None) return 0.0;
  PyObject* tokens = found(one.cached.get(), shapes().engine.name(engine));
  return tokens == nullptr ? 0.0 : real(tokens);
}

// Whether an engine is one of ours that computes vectors.
inline bool embeds(PyObject* engine) {
  const Shapes& all = shapes();
  return is(engine, all.engine.type) && all.engine.generates(engine) == Py_False &&
         is(all.engine.embed(engine), all.text_cost.type) && is(all.engine.spec(engine), all.spec.type);
}

// `EmbedForecast.of` for one text that somebody waits for, as `forecast`; false too where a call would be held.
inline bool forecast_text(Newcomer& one) {
  const Shapes& all = shapes();
  const EngineSlots& at = all.engine;
  const bool alone = empty(all.job.batch_key(one.job));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(one.engines); ++i) {
    PyObject* engine = PyList_GET_ITEM(one.engines, i);
    if (!embeds(engine) || all.text_cost.trusted(at.embed(engine)) != Py_True ||
        !(alone || all.spec.batches(at.spec(engine)) == Py_True))
      return false;
    const double running = real(at.running(engine));
    const double left = real(at.busy_until(engine)) - one.now, ahead = running != 0 ? std::max(0.0, left) : 0.0;
    const double seconds = ahead + seconds_of_texts(engine, static_cast<double>(one.tokens), 1.0);
    const bool quick = ahead <= all.soon_over && seconds - ahead <= all.quick;
    if (real(at.free(engine)) <= 0 || (running >= all.behind && !quick)) {
      one.prospect.closed = true;
      continue;
    }
    one.prospect.offer({engine, seconds, whole(at.last_dispatch(engine))});
  }
  return true;
}

// Fills in `prospect`; false where an engine is of a kind that the plain case does not know.
inline bool forecast(Newcomer& one) {
  const Shapes& all = shapes();
  const EngineSlots& at = all.engine;
  const bool low = all.job.request_class(one.job) == all.batch.get();
  const double tightest = real(all.forecast._tightest(all.hybrid._llm(one.policy)));
  const double backlog = (low ? all.shallow_for_low : all.shallow) * tightest;
  const double headroom = low ? all.headroom : 1.0;
  PyObject* goal = all.slo.tpot(one.slo);
  const double tpot = goal == Py_None ? std::numeric_limits<double>::infinity() : all.tight * real(goal);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(one.engines); ++i) {
    PyObject* engine = PyList_GET_ITEM(one.engines, i);
    if (!is(engine, at.type) || at.generates(engine) != Py_True || at.media(engine) != Py_False) return false;
    PyObject* llm = at.llm(engine);
    if (!is(llm, all.cost.type) || all.cost.trusted(llm) != Py_True) return false;
    const Cost cost(llm);
    const double running = real(at.running(engine)), ahead = real(at.prefill_tokens(engine));
    if (real(at.free(engine)) <= 0 ||
        (running != 0 && !(cost.per_token * ahead <= backlog && running < headroom * real(at.max_running(engine)) &&
                           cost.tpot_base + cost.tpot_slope * (running + 1) <= tpot))) {
      one.prospect.closed = true;
      continue;
    }
    const double work = ahead + static_cast<double>(one.tokens) - cached_at(one, engine);
    one.prospect.offer({engine, cost.ttft(work, running), whole(at.last_dispatch(engine))});
  }
  return true;
}

// What a generation is to cost, and until when its first token is due; false where it is not plain.
inline bool price_chat(Newcomer& one) {
  const Shapes& all = shapes();
  if (all.job.hedgeable(one.job) != Py_False || !empty(all.job.batch_key(one.job)) ||
      !is(all.engine.llm(one.reference), all.cost.type) || all.slo.total(one.slo) != Py_None)
    return false;
  std::tie(one.p50, one.p90) = lengths(all.estimator._lengths(one.estimator), one.job);
  const double tokens = static_cast<double>(one.tokens);
  const Cost cost(all.engine.llm(one.reference));
  one.cost = cost.seconds(tokens, real(one.p50.get()), real(all.engine.max_running(one.reference)));
  one.quick = cost.ttft(tokens, 0);
  if (PyTuple_GET_SIZE(all.job.blocks(one.job)) != 0) one.cached = cached_tokens(one);
  return true;
}

// The same of one text that somebody waits for.
inline bool price_text(Newcomer& one) {
  const Shapes& all = shapes();
  if (all.job.request_class(one.job) != all.interactive.get() || PyTuple_GET_SIZE(all.job.blocks(one.job)) != 0 ||
      !embeds(one.reference))
    return false;
  one.p50 = one.p90 = all.nothing;
  const double tokens = static_cast<double>(one.tokens);
  one.cost = seconds_of_texts(one.reference, tokens, 1.0);
  one.quick = TextCost(all.engine.embed(one.reference)).seconds(tokens, 1.0, threads_of(one.reference), false);
  return true;
}

// Looks at everything that the plain case asks of a `job` that came at a time, without a deadline, to a core; the
// rest is filled in. Nothing has changed when it says no.
inline bool meet(Newcomer& one) {
  const Shapes& all = shapes();
  if (!is(one.job, all.job.type)) return false;
  one.placement = all.core._placement(one.core);
  one.policy = all.placement.policy(one.placement);
  if (!is(one.policy, all.hybrid.type) || !plain(one.job)) return false;
  one.lanes = all.core._lanes(one.core);
  one.lane = lane_of(one.lanes, one.job);
  if (one.lane == nullptr || PyDict_GET_SIZE(all.lane.records(one.lane)) != 0) return false;
  if (whole(all.lane._version(one.lane)) != whole(all.table.version(all.core.engines(one.core)))) return false;
  one.engines = all.lane._engines(one.lane);
  one.reference = all.lane.reference(one.lane);
  const long long texts = whole(all.job.texts(one.job));
  if (!is(one.reference, all.engine.type) || texts > 1) return false;
  one.text = texts == 1;
  one.estimator = all.core._estimator(one.core);
  one.slo = found(all.estimator._slos(one.estimator), all.job.request_class(one.job));
  if (one.slo == nullptr) return false;

  one.now = real(one.at);
  one.tokens = prompt_tokens(all.estimator._prompts(one.estimator), one.job);
  if (!(one.text ? price_text(one) : price_chat(one))) return false;
  PyObject* goal = one.text ? all.slo.total(one.slo) : all.slo.ttft(one.slo);
  one.due = goal == Py_None ? std::numeric_limits<double>::infinity() : one.now + real(goal);
  one.due = std::max(one.due, one.now + all.stretch * one.quick);
  if (!(one.text ? forecast_text(one) : forecast(one)) || one.prospect.best.engine == nullptr) return false;
  const double left = one.due - one.now, seconds = one.prospect.best.seconds;
  return seconds <= left && !(one.prospect.closed && seconds > 2.0 * one.quick);
}

}  // namespace bindings
