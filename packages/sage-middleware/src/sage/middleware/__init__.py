"""Layer 5: control plane, engines, pipeline operators, native operators."""
