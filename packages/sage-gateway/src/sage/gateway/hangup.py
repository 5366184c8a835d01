"""What SIGHUP means: load the configuration again, or the terminal is gone."""

from __future__ import annotations

import os
import signal

__all__ = ["Terminal"]


class Terminal:
    """The terminal that this process was started from, if any.

    SIGHUP is how a service is told to load its configuration, and how the system says that the terminal was
    closed. The two differ in that a terminal that was there is there no more. Who had SIGHUP ignored when it
    was started (`nohup`) is meant to outlive its terminal.
    """

    def __init__(self) -> None:
        self._had = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _there()

    @property
    def gone(self) -> bool:
        """Whether there was one that was closed."""
        return self._had and not _there()


def _there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
