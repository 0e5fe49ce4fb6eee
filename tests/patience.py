"""How long a test waits: for a state, never for a time, with one limit that only a hang meets.

A busy machine is slower by any factor, so no test has a shorter limit of its own: a deadline that the product asks for,
a client's timeout and a wait of ours are all `LIMIT`. A short one stands only where its passing is what is tested.
A test that hangs elsewhere is ended and named by pytest-timeout after as long (`timeout` in pyproject.toml).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

LIMIT = 600.0  # seconds

Found = TypeVar("Found")


def until(holds: Callable[[], Found], what: str | Callable[[], Any] = "", pause: float = 0.5) -> Found:
    """What `holds()` gives as soon as it gives anything; `what` is said when it never does. Looks at once and then less
    and less often, at least once in `pause` seconds."""
    end, wait = time.monotonic() + LIMIT, 0.01
    while not (found := holds()):
        assert time.monotonic() < end, _said(what)
        time.sleep(wait)
        wait = min(wait * 1.5, pause)
    return found


async def come(holds: Callable[[], Any], what: str | Callable[[], Any] = "", pause: float = 0.5) -> Any:
    """`until` for a test with an event loop, which goes on meanwhile; `holds` may be a coroutine function."""
    end, wait = time.monotonic() + LIMIT, 0.01
    while True:
        answer = holds()
        if found := (await answer if inspect.isawaitable(answer) else answer):
            return found
        assert time.monotonic() < end, _said(what)
        await asyncio.sleep(wait)
        wait = min(wait * 1.5, pause)


def _said(what: str | Callable[[], Any]) -> str:
    return f"waited {LIMIT:.0f} s in vain: {what() if callable(what) else what}"
