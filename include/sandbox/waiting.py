"""What is waited for, and for how long: a line that moves below what is printed."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text


class Waiting:
    """As a context it shows the line on a terminal; elsewhere, and where a picture is drawn of what is printed, it
    shows nothing."""

    def __init__(self, console: Console) -> None:
        moving = console.is_terminal and not console.record
        self._status = console.status(self) if moving else None
        self._what, self._since = "", time.monotonic()

    def __enter__(self) -> Waiting:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def __rich__(self) -> Text:
        return Text(f"{clock(time.monotonic() - self._since)} {self._what}", style="dim")

    def on(self, what: str) -> None:
        """From now on it is this that is waited for; the time begins anew where it is something else."""
        if what != self._what:
            self._what, self._since = what, time.monotonic()


def clock(seconds: float) -> str:
    """`1:07`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
