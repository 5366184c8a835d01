"""What tests of engines use: the scripted engine."""

from __future__ import annotations

from sage.middleware.testing.scripted import Script, ScriptedEngine

__all__ = ["Script", "ScriptedEngine"]
