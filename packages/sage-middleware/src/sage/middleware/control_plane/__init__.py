"""The control plane: one scheduler for all engines, of text and of vectors.

Where things are:

- **Words**: `types` (requests, events, actions), `records`, `policy` (the port), `goals`, `options`.
- **Core**, pure: `core` (the state machine) on `requests` (its state), with `lanes` and `disciplines` (what
  waits, in which order), `placement`, `attempts`, `batches` (what is sent), `admission`, `roster` and
  `breaker` (engines' lives), `engine_table`.
- **Learning**: `estimator` feeds `cost` (built on `regression`); `prefix` knows what engines have cached.
- **Policies**: `policies`; `urgency` is the order of `hybrid`.
- **Engines that come and go**: `scaling` feeds `autoscale`, which keeps a `fleet` for each template.
- **What it tells**: `accounting` and `histogram` (books), `metrics`, `reports`, `trace` (which replays).
- **In**: `classify` with `json_guard`, `bodies` and `wishes` (headers).
- **Live**: `driver` with `tickets`, `upstream`, `relay`, `calls` and `sharing` (embeddings); `inprocess`.
- **In virtual time**: `simulator`, which drives the very same core.
"""
