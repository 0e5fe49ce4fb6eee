"""Lines in a log about something that takes its time: how far it is, without a bar that fills the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Seconds after which a line says that it goes on, however little came.
PATIENCE = 5.0


class Download:
    """Counts the bytes of one download and says a line at each tenth of it, and every few seconds in between.

    `total` is the size in bytes. Called with the number of bytes that came, by any thread; a negative number takes
    some back, as when a server begins again from the start.
    """

    def __init__(
        self, name: str, total: int, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._total, self._log, self._clock = name, total, log, clock
        self._lock = threading.Lock()
        self._came = self._tenths = 0
        self._began = self._said = clock()

    def __call__(self, more: int) -> None:
        with self._lock:
            self._came += more
            tenths = self._came * 10 // self._total if self._total else 10
            now = self._clock()
            if self._came < self._total and (tenths > self._tenths or now - self._said >= PATIENCE):
                self._tenths, self._said = max(tenths, self._tenths), now
                share = f"{self._came / self._total:.0%}"
                self._log(f"{self._name}: {size(self._came)} of {size(self._total)} ({share})")

    def done(self) -> None:
        """The last line: the size, and the seconds that it took."""
        self._log(f"{self._name}: {size(self._total)} in {self._clock() - self._began:.1f} s")


def size(count: float) -> str:
    """Bytes for people: 343.2 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
