"""What an app says: data on stdout, talk on stderr; progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Talk", "plain_table"]


@dataclass(frozen=True, slots=True)
class Talk:
    """`data` is off where stdout is for one JSON document only."""

    data: bool = True

    def say(self, line: str) -> None:
        """One line about what is going on."""
        print(line, file=sys.stderr, flush=True)

    def out(self, text: str, end: str = "\n") -> None:
        """Data for the reader, at once."""
        if self.data:
            print(text, end=end, flush=True)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on stdout."""
        if not self.data:
            return
        if not sys.stdout.isatty():
            print(plain_table(headings, rows), flush=True)
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(*headings)
        for row in rows:
            table.add_row(*row)
        Console().print(table)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Give a function to call with the count so far."""
        if not sys.stderr.isatty():
            reached = 0

            def note(done: int) -> None:
                nonlocal reached
                # Quarters: enough to see that it moves, few enough for a log.
                quarter = 4 * done // total if total else 0
                if quarter > reached:
                    reached = quarter
                    self.say(f"{label}: {done} of {total}")

            yield note
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(task, completed=done)


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
