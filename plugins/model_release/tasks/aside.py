"""A call that may hang, made where it holds up nobody but whoever asked for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def aside(call: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """The call's result, from a thread of its own that ends with it. asyncio's executor has a few threads for the whole
    triggerer: a handful of calls to a store that hangs would hold every other canary's looks up.

    Cancelled, the thread goes on by itself, and what it comes to is nobody's.
    """
    loop, context = asyncio.get_running_loop(), copy_context()
    came: asyncio.Future[T] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if came.done():
            return
        if error is None:
            came.set_result(result)
        else:
            came.set_exception(error)

    def run() -> None:
        result: Any = None
        trouble: BaseException | None = None
        try:
            result = context.run(call, *given, **named)
        except BaseException as error:
            trouble = error
        with suppress(RuntimeError):  # the triggerer has ended meanwhile
            loop.call_soon_threadsafe(tell, result, trouble)

    threading.Thread(target=run, name=f"aside: {getattr(call, '__qualname__', call)}", daemon=True).start()
    return await came
