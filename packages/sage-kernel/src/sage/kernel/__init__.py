"""Layer 3: declarative dataflow plans and the runtime that runs them."""
