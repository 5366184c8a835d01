"""What a worker process makes its operators from."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import spawn
from threading import Event
from typing import Final

from sage.common.errors import UsageError
from sage.kernel.compile import Op
from sage.kernel.options import Call
from sage.kernel.runtime.replicas.wire import Part, pack

__all__ = ["importing", "recipe"]

importing: Final = Event()
"""Set in a worker while it imports the main script."""


def recipe(ops: Sequence[Op]) -> list[Part]:
    """The message from which a worker makes these operators. Raises UsageError where they cannot be sent."""
    if importing.is_set():
        raise UsageError(
            "A worker that imports the main script came to the line that starts the flow.",
            hint="Put what the script does under: if __name__ == '__main__':",
        )
    sent = [
        replace(op, node=replace(op.node, fn=None, call=Call(on_error=op.node.call.on_error))) for op in ops
    ]
    try:
        data = pickle.dumps(sent, 5)
    except Exception as error:
        names = ", ".join(repr(op.node.name) for op in ops)
        raise UsageError(f"Operators {names} cannot be sent to a process: {error}.") from error
    main = None
    if b"__main__" in data:
        main = spawn.get_preparation_data("sage-worker")
        del main["authkey"]  # which refuses to be pickled, and nobody needs it
    return pack({"path": sys.path, "main": main, "ops": data})
