// Where the classes of the control plane keep what `bind_direct.hpp` reads and writes.
#pragma once

#include "slots.hpp"

namespace bindings {

using python::Ref;
using python::Slot;

#define SAGE_CLASS(module, name) Ref type = python::member("sage.middleware." module, #name)
#define SAGE_SLOT(name) Slot name{type, #name}

struct ArrivedSlots {
  SAGE_CLASS("control_plane.types", Arrived);
  SAGE_SLOT(at);
  SAGE_SLOT(job);
  SAGE_SLOT(deadline);
};

struct FinishedSlots {
  SAGE_CLASS("control_plane.types", Finished);
  SAGE_SLOT(at);
  SAGE_SLOT(attempt);
  SAGE_SLOT(usage);
};

struct JobSlots {
  SAGE_CLASS("control_plane.types", Job);
  SAGE_SLOT(id);
  SAGE_SLOT(model);
  SAGE_SLOT(request_class);
  SAGE_SLOT(tenant);
  SAGE_SLOT(needs);
  SAGE_SLOT(prompt_tokens);
  SAGE_SLOT(max_tokens);
  SAGE_SLOT(texts);
  SAGE_SLOT(prompt_bytes);
  SAGE_SLOT(slo);
  SAGE_SLOT(blocks);
  SAGE_SLOT(batch_key);
  SAGE_SLOT(stream);
  SAGE_SLOT(hedgeable);
  SAGE_SLOT(parent);
  SAGE_SLOT(explain);
};

struct SloSlots {
  SAGE_CLASS("control_plane.types", Slo);
  SAGE_SLOT(ttft);
  SAGE_SLOT(tpot);
  SAGE_SLOT(total);
};

struct UsageSlots {
  SAGE_CLASS("engines.port", Usage);
  SAGE_SLOT(prompt_tokens);
  SAGE_SLOT(completion_tokens);
};

struct RecordSlots {
  SAGE_CLASS("control_plane.records", Record);
  SAGE_SLOT(job);
  SAGE_SLOT(arrived);
  SAGE_SLOT(slo);
  SAGE_SLOT(prompt_tokens);
  SAGE_SLOT(units);
  SAGE_SLOT(left);
  SAGE_SLOT(charged);
  SAGE_SLOT(cached);
  SAGE_SLOT(outcome);
  SAGE_SLOT(retries);
  SAGE_SLOT(hedges);
  SAGE_SLOT(dispatched);
  SAGE_SLOT(ended);
  SAGE_SLOT(usage);
  SAGE_SLOT(running);
  SAGE_SLOT(candidates);
  SAGE_SLOT(attempts);
  SAGE_SLOT(predicted);
};

struct AttemptSlots {
  SAGE_CLASS("control_plane.engine_table", Attempt);
  SAGE_SLOT(number);
  SAGE_SLOT(engine);
  SAGE_SLOT(slices);
  SAGE_SLOT(service);
  SAGE_SLOT(texts);
  SAGE_SLOT(tokens);
  SAGE_SLOT(outstanding);
  SAGE_SLOT(first_byte);
  SAGE_SLOT(learns);
  SAGE_SLOT(twin);
};

struct EngineSlots {
  SAGE_CLASS("control_plane.engine_table", EngineLoad);
  SAGE_SLOT(_busy);
  SAGE_SLOT(_prefilling);
  SAGE_SLOT(_running_seconds);
  SAGE_SLOT(_since);
  SAGE_SLOT(_slots);
  SAGE_SLOT(attempts);
  SAGE_SLOT(breaker);
  SAGE_SLOT(busy_until);
  SAGE_SLOT(device);
  SAGE_SLOT(embed);
  SAGE_SLOT(free);
  SAGE_SLOT(generates);
  SAGE_SLOT(idle_since);
  SAGE_SLOT(last_dispatch);
  SAGE_SLOT(latency);
  SAGE_SLOT(learn_at);
  SAGE_SLOT(learned);
  SAGE_SLOT(llm);
  SAGE_SLOT(max_running);
  SAGE_SLOT(media);
  SAGE_SLOT(name);
  SAGE_SLOT(outstanding_tokens);
  SAGE_SLOT(prefill_tokens);
  SAGE_SLOT(running);
  SAGE_SLOT(served);
  SAGE_SLOT(silence);
  SAGE_SLOT(spec);
  SAGE_SLOT(state);
};

struct SpecSlots {
  SAGE_CLASS("engines.port", EngineSpec);
  SAGE_SLOT(batches);
  SAGE_SLOT(cores);
};

struct TableSlots {
  SAGE_CLASS("control_plane.engine_table", EngineTable);
  SAGE_SLOT(_served);
  SAGE_SLOT(version);
};

struct SilenceSlots {
  SAGE_CLASS("control_plane.breaker", Silence);
  SAGE_SLOT(since);
  SAGE_SLOT(degraded);
};

struct BreakerSlots {
  SAGE_CLASS("control_plane.breaker", Breaker);
  SAGE_SLOT(faults);
};

struct CostSlots {
  SAGE_CLASS("control_plane.cost", LlmCost);
  SAGE_SLOT(_tpot);
  SAGE_SLOT(chunk);
  SAGE_SLOT(iteration_base);
  SAGE_SLOT(iteration_slope);
  SAGE_SLOT(per_token);
  SAGE_SLOT(tpot_base);
  SAGE_SLOT(tpot_slope);
  SAGE_SLOT(trusted);
};

struct TextCostSlots {
  SAGE_CLASS("control_plane.cost", EmbedCost);
  SAGE_SLOT(_interference);
  SAGE_SLOT(_per_text);
  SAGE_SLOT(_per_token);
  SAGE_SLOT(_setup);
  SAGE_SLOT(_threads);
  SAGE_SLOT(trusted);
};

struct RegressionSlots {
  SAGE_CLASS("control_plane.regression", LeastSquares);
  SAGE_SLOT(weights);
};

struct QuantileSlots {
  SAGE_CLASS("control_plane.regression", Quantile);
  SAGE_SLOT(value);
};

struct EstimatorSlots {
  SAGE_CLASS("control_plane.estimator", Estimator);
  SAGE_SLOT(_slos);
  SAGE_SLOT(_lengths);
  SAGE_SLOT(_prompts);
};

struct LengthsSlots {
  SAGE_CLASS("control_plane.cost", OutputLengths);
  SAGE_SLOT(_known);
};

struct PromptsSlots {
  SAGE_CLASS("control_plane.cost", PromptTokens);
  SAGE_SLOT(_known);
};

struct CoreSlots {
  SAGE_CLASS("control_plane.core", Core);
  SAGE_SLOT(_arrivals);
  SAGE_SLOT(_attempts);
  SAGE_SLOT(_chains);
  SAGE_SLOT(_estimator);
  SAGE_SLOT(_history);
  SAGE_SLOT(_lanes);
  SAGE_SLOT(_live);
  SAGE_SLOT(_next_look);
  SAGE_SLOT(_placement);
  SAGE_SLOT(_retries);
  SAGE_SLOT(_roster);
  SAGE_SLOT(books);
  SAGE_SLOT(engines);
};

struct AttemptsSlots {
  SAGE_CLASS("control_plane.attempts", Attempts);
  SAGE_SLOT(_late);
  SAGE_SLOT(_presumed);
  SAGE_SLOT(_sent);
};

struct ChainsSlots {
  SAGE_CLASS("control_plane.chains", Chains);
  SAGE_SLOT(_deadlines);
};

struct HistorySlots {
  SAGE_CLASS("control_plane.records", History);
  SAGE_SLOT(_records);
  SAGE_SLOT(_size);
};

struct RetriesSlots {
  SAGE_CLASS("control_plane.admission", RetryBudget);
  SAGE_SLOT(_left);
  SAGE_SLOT(_limits);
};

struct LimitsSlots {
  SAGE_CLASS("control_plane.options", Limits);
  SAGE_SLOT(retry_share);
  SAGE_SLOT(hedge_share);
};

struct LanesSlots {
  SAGE_CLASS("control_plane.lanes", Lanes);
  SAGE_SLOT(_lanes);
  SAGE_SLOT(counts);
  SAGE_SLOT(waiting);
};

struct LaneSlots {
  SAGE_CLASS("control_plane.lanes", Lane);
  SAGE_SLOT(_engines);
  SAGE_SLOT(_version);
  SAGE_SLOT(ahead);
  SAGE_SLOT(records);
  SAGE_SLOT(reference);
};

struct CountsSlots {
  SAGE_CLASS("control_plane.lanes", ClassCounts);
  SAGE_SLOT(completed);
};

struct PlacementSlots {
  SAGE_CLASS("control_plane.placement", Placement);
  SAGE_SLOT(_details);
  SAGE_SLOT(_details_at);
  SAGE_SLOT(_details_per_s);
  SAGE_SLOT(_hedges);
  SAGE_SLOT(_limits);
  SAGE_SLOT(_prefixes);
  SAGE_SLOT(name);
  SAGE_SLOT(policy);
};

struct HybridSlots {
  SAGE_CLASS("control_plane.policies.hybrid", Hybrid);
  SAGE_SLOT(_accounts);
  SAGE_SLOT(_exploration);
  SAGE_SLOT(_floor);
  SAGE_SLOT(_llm);
  SAGE_SLOT(_random);
};

struct ForecastSlots {
  SAGE_CLASS("control_plane.policies.forecast", LlmForecast);
  SAGE_SLOT(_tightest);
};

struct FloorSlots {
  SAGE_CLASS("control_plane.urgency", Floor);
  SAGE_SLOT(owed);
};

struct AccountsSlots {
  SAGE_CLASS("control_plane.disciplines", Accounts);
  SAGE_SLOT(_accounts);
  SAGE_SLOT(_served);
};

struct AccountSlots {
  SAGE_CLASS("control_plane.disciplines", _Account);
  SAGE_SLOT(lanes);
  SAGE_SLOT(used);
  SAGE_SLOT(weight);
};

struct BooksSlots {
  SAGE_CLASS("control_plane.accounting", Books);
  SAGE_SLOT(_engines);
  SAGE_SLOT(_tenants);
  SAGE_SLOT(overhead);
  SAGE_SLOT(tokens);
};

struct NewestSlots {
  SAGE_CLASS("control_plane.accounting", _Newest);
  SAGE_SLOT(_newest);
};

struct CallsSlots {
  SAGE_CLASS("control_plane.accounting", Calls);
  SAGE_SLOT(error);
  SAGE_SLOT(ratio);
  SAGE_SLOT(texts);
  SAGE_SLOT(tokens);
};

struct ClassesSlots {
  SAGE_CLASS("control_plane.accounting", _Classes);
  SAGE_SLOT(tallies);
};

struct TallySlots {
  SAGE_CLASS("control_plane.accounting", Tally);
  SAGE_SLOT(done);
  SAGE_SLOT(met);
  SAGE_SLOT(queue);
  SAGE_SLOT(total);
};

struct HistogramSlots {
  SAGE_CLASS("control_plane.histogram", LogHistogram);
  SAGE_SLOT(_fresh);
};

#undef SAGE_SLOT
#undef SAGE_CLASS

}  // namespace bindings
