// Everything that `bind_direct.hpp` looks up once: where slots are, constants of the control plane, words.
#pragma once

#include <limits>
#include <string>

#include "direct_slots.hpp"

namespace bindings {

inline double constant(const char* module, const char* name) {
  return python::real(python::member((std::string("sage.middleware.control_plane.") + module).c_str(), name).get());
}

// Everything that is looked up once.
struct Shapes {
  ArrivedSlots arrived;
  FinishedSlots finished;
  JobSlots job;
  SloSlots slo;
  UsageSlots usage;
  RecordSlots record;
  AttemptSlots attempt;
  EngineSlots engine;
  SpecSlots spec;
  TableSlots table;
  SilenceSlots silence;
  BreakerSlots breaker;
  CostSlots cost;
  TextCostSlots text_cost;
  RegressionSlots regression;
  QuantileSlots quantile;
  EstimatorSlots estimator;
  LengthsSlots lengths;
  PromptsSlots prompts;
  CoreSlots core;
  AttemptsSlots attempts;
  ChainsSlots chains;
  HistorySlots history;
  RetriesSlots retries;
  LimitsSlots limits;
  LanesSlots lanes;
  LaneSlots lane;
  CountsSlots counts;
  PlacementSlots placement;
  HybridSlots hybrid;
  ForecastSlots forecast;
  FloorSlots floor;
  AccountsSlots accounts;
  AccountSlots account;
  BooksSlots books;
  NewestSlots newest;
  CallsSlots calls;
  ClassesSlots classes;
  TallySlots tally;
  HistogramSlots histogram;

  Ref dispatch = python::member("sage.middleware.control_plane.types", "Dispatch");
  Ref slice = python::member("sage.middleware.control_plane.types", "Slice");
  Ref batch = python::member("sage.middleware.control_plane.policies.forecast", "BATCH");
  Ref interactive = python::attribute(python::member("sage.common.telemetry", "RequestClass"), "EMBED_INTERACTIVE");
  Ref generates = python::member("sage.middleware.control_plane.accounting", "_GENERATES");
  Ref words = python::member("sage.middleware.control_plane.policies.forecast", "first_of");
  Ref push = python::member("heapq", "heappush");

  double shallow = constant("policies.forecast", "SHALLOW");
  double shallow_for_low = constant("policies.forecast", "SHALLOW_FOR_LOW");
  double headroom = constant("policies.forecast", "HEADROOM");
  double tight = constant("policies.forecast", "TIGHT");
  double tie = constant("policies.forecast", "TIE");
  double behind = constant("policies.forecast", "BEHIND"), quick = constant("policies.forecast", "QUICK_S");
  double soon_over = constant("policies.forecast", "SOON_OVER_S");
  double scaling = python::real(python::attribute(text_cost.type, "_SCALING").get());
  double stretch = constant("lanes", "STRETCH");
  double known = constant("estimator", "KNOWN");
  double reserve = python::real(python::attribute(retries.type, "RESERVE").get());
  double hedge_reserve = constant("placement", "HEDGE_RESERVE");
  double block = constant("prefix", "BLOCK"), bytes_per_token = constant("placement", "BYTES_PER_TOKEN");
  double lump = constant("histogram", "_LUMP");
  long long few = static_cast<long long>(constant("requests", "FEW"));

  Ref empty = Ref::made(PyTuple_New(0));
  Ref zero = python::number(0LL), one = python::number(1LL), nothing = python::number(0.0);
  Ref never = python::number(std::numeric_limits<double>::infinity());
  Ref still = python::tuple(Ref(nothing), Ref(nothing), Ref(nothing));
  Ref running = python::word("running"), done = python::word("done"), draining = python::word("draining");
};

}  // namespace bindings
