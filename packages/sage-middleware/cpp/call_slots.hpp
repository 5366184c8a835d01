// Where the live side of the control plane and the connections keep what `bind_calls.hpp` reads and writes.
#pragma once

#include "slots.hpp"

namespace bindings {

using python::Ref;
using python::Slot;

#define SAGE_CLASS(module, name) Ref type = python::member("sage.middleware." module, #name)
#define SAGE_SLOT(name) Slot name{type, #name}

struct PlaneSlots {
  SAGE_CLASS("control_plane.driver", ControlPlane);
  SAGE_SLOT(_clock);
  SAGE_SLOT(_closing);
  SAGE_SLOT(_core);
  SAGE_SLOT(_engines);
  SAGE_SLOT(_pulse);
  SAGE_SLOT(_tickets);
  SAGE_SLOT(_timer);
  SAGE_SLOT(_timer_due);
  SAGE_SLOT(_trace);
  SAGE_SLOT(_upstreams);
};

struct RosterSlots {
  SAGE_CLASS("control_plane.roster", Roster);
  SAGE_SLOT(next_probe);
};

struct UpstreamsSlots {
  SAGE_CLASS("control_plane.upstream", Upstreams);
  SAGE_SLOT(_running);
  SAGE_SLOT(_texts);
};

struct TextsInFlightSlots {
  SAGE_CLASS("control_plane.sharing", TextsInFlight);
  SAGE_SLOT(_keys);
};

struct FlightSlots {
  SAGE_CLASS("control_plane.sharing", Flight);
  SAGE_SLOT(key);
  SAGE_SLOT(texts);
  SAGE_SLOT(landed);
  SAGE_SLOT(waited_for);
};

struct CallSlots {
  SAGE_CLASS("engines.port", Call);
  SAGE_SLOT(route);
  SAGE_SLOT(body);
};

struct TicketSlots {
  SAGE_CLASS("control_plane.tickets", Ticket);
  SAGE_SLOT(job);
  SAGE_SLOT(sink);
  SAGE_SLOT(own);
  SAGE_SLOT(error);
  SAGE_SLOT(answer);
  SAGE_SLOT(outcome);
  SAGE_SLOT(closed);
  SAGE_SLOT(waiter);
  SAGE_SLOT(told);
  SAGE_SLOT(record);
};

struct PartSlots {
  SAGE_CLASS("control_plane.tickets", Part);
  SAGE_SLOT(ticket);
};

struct UpstreamSlots {
  SAGE_CLASS("control_plane.tickets", Upstream);
  SAGE_SLOT(number);
  SAGE_SLOT(parts);
  SAGE_SLOT(untasked);
  SAGE_SLOT(flight);
};

struct BegunSlots {
  SAGE_CLASS("engines.adapter", _Begun);
  SAGE_SLOT(_call);
  SAGE_SLOT(_parts);
  SAGE_SLOT(_told);
  SAGE_SLOT(status);
};

struct PoolSlots {
  SAGE_CLASS("engines.http", HttpPool);
  SAGE_SLOT(_closed);
  SAGE_SLOT(_heads);
  SAGE_SLOT(_idle);
  SAGE_SLOT(_keep_idle_s);
  SAGE_SLOT(_max_idle);
  SAGE_SLOT(_timer);
  SAGE_SLOT(limits);
  SAGE_SLOT(seen);
};

struct AnswerLimitsSlots {
  SAGE_CLASS("engines.connection", HttpLimits);
  SAGE_SLOT(body_bytes);
};

struct ConnectionSlots {
  SAGE_CLASS("engines.connection", Connection);
  SAGE_SLOT(_complete);
  SAGE_SLOT(_deadline);
  SAGE_SLOT(_end);
  SAGE_SLOT(_first_s);
  SAGE_SLOT(_keep_alive);
  SAGE_SLOT(_over);
  SAGE_SLOT(_parsed);
  SAGE_SLOT(_pool);
  SAGE_SLOT(_receiver);
  SAGE_SLOT(_started);
  SAGE_SLOT(_total_s);
  SAGE_SLOT(_transport);
  SAGE_SLOT(_untouched);
  SAGE_SLOT(_used);
  SAGE_SLOT(_wake);
  SAGE_SLOT(idle_since);
};

struct HeadSlots {
  SAGE_CLASS("engines.heads", Head);
  SAGE_SLOT(before);
  SAGE_SLOT(after);
};

#undef SAGE_SLOT
#undef SAGE_CLASS

// Everything of it that is looked up once.
struct CallShapes {
  PlaneSlots plane;
  RosterSlots roster;
  UpstreamsSlots upstreams;
  TextsInFlightSlots texts;
  FlightSlots flight;
  CallSlots call;
  TicketSlots ticket;
  PartSlots part;
  UpstreamSlots upstream;
  BegunSlots begun;
  PoolSlots pool;
  AnswerLimitsSlots limits;
  ConnectionSlots connection;
  HeadSlots head;

  Ref partial = python::member("functools", "partial");
  Ref clock = python::member("sage.middleware.engines.connection", "monotonic");
  Ref json_line = python::member("sage.middleware.engines.http", "_JSON_LINE");
  Ref json = python::word("application/json");
  Ref embeddings = python::member("sage.middleware.engines.port", "EMBEDDINGS");
};

}  // namespace bindings
