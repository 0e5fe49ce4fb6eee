"""Users, as far as a canary needs them: real images sent through the front door at a set rate.

`python -m sandbox.load STATE URL` runs until SIGTERM. It follows the wishes file, so that service and rate can be
changed while it runs, and writes a summary to `load.json` each second.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import json
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from sandbox.ports import replace
from sandbox.wishes import Load, Wishes

# An open loop does not wait for answers. This many requests may be under way before new ones are left out (and
# counted as such): a service that hangs must not eat the machine's memory.
_MOST_UNDER_WAY = 256
_RECENT = 2000
#: The service whose users send more of the larger images than those of all others.
SCANS = "models/digits-scans"


class LoadGenerator:
    """Sends V1 predictions, one image each, with exponentially distributed pauses (a Poisson process).

    `images` are what is sent to every service that `others` does not name; there, `namespace/name` gives what to call
    for that service's images, once it is asked for.

    A service that is not there yet, or a connection that breaks, is counted and otherwise no trouble.
    """

    def __init__(
        self,
        url: str,
        images: list[bytes],
        seed: int | None = None,
        others: Mapping[str, Callable[[], list[bytes]]] | None = None,
    ) -> None:
        if not images:
            raise ValueError("no images to send")
        self._url = url
        self._usual, self._others = _bodies(images), others or {}
        self._prepared: dict[str, list[bytes]] = {}
        self._random = random.Random(seed)
        self._under_way: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()
        self._left_out = 0
        self._answers: dict[str, Counter[str]] = defaultdict(Counter)
        self._latencies: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))
        self.load: Load | None = None

    async def run(self) -> None:
        """Sends until cancelled; then waits for the answers under way, a second at most."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            try:
                await self._send_on_time(http)
            finally:
                if self._under_way:
                    await asyncio.wait(self._under_way, timeout=1)
                for task in self._under_way:
                    task.cancel()

    def summary(self) -> dict[str, Any]:
        """Counts by revision (from the header x-revision, `-` without one) and status, or kind of fault.

        `p50_ms` and `p95_ms` are of each revision's last 2000 answers, whatever their status.
        """
        load = self.load
        return {
            "service": load.service if load else None,
            "rate": load.rate if load else 0,
            "seconds": round(time.monotonic() - self._began, 1),
            "sent": sum(counter.total() for counter in self._answers.values()),
            "left_out": self._left_out,
            "answers": {revision: dict(counter) for revision, counter in sorted(self._answers.items())},
            "p50_ms": {revision: _quantile(seen, 0.5) for revision, seen in sorted(self._latencies.items())},
            "p95_ms": {revision: _quantile(seen, 0.95) for revision, seen in sorted(self._latencies.items())},
        }

    def bodies(self, service: str) -> list[bytes]:
        """What is sent to a service, one of these at random each time."""
        if service not in self._prepared:
            own = self._others.get(service)
            self._prepared[service] = _bodies(own()) if own else self._usual
        return self._prepared[service]

    async def _send_on_time(self, http: aiohttp.ClientSession) -> None:
        due = time.monotonic()
        while True:
            load = self.load
            if load is None:
                await asyncio.sleep(0.1)
                due = time.monotonic()
                continue
            due += self._random.expovariate(load.rate)
            # After a pause of the whole machine, go on from here; a burst of all that was missed is no real user.
            due = max(due, time.monotonic() - 1)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            if len(self._under_way) >= _MOST_UNDER_WAY:
                self._left_out += 1
                continue
            task = asyncio.create_task(self._send(http, load))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _send(self, http: aiohttp.ClientSession, load: Load) -> None:
        url = f"{self._url}/v1/models/{load.service.split('/')[1]}:predict"
        headers = {"Host": load.host, "Content-Type": "application/json"}
        began = time.monotonic()
        try:
            async with http.post(url, data=self._random.choice(self.bodies(load.service)), headers=headers) as answer:
                await answer.read()
                revision, outcome = answer.headers.get("x-revision", "-"), str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            revision, outcome = "-", type(error).__name__
        else:
            self._latencies[revision].append(time.monotonic() - began)
        self._answers[revision][outcome] += 1


def _bodies(images: list[bytes]) -> list[bytes]:
    return [json.dumps({"instances": [{"data": base64.b64encode(image).decode()}]}).encode() for image in images]


def _quantile(seconds: deque[float], share: float) -> float:
    ordered = sorted(seconds)
    return round(1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)], 1)


async def follow(state_dir: Path, generator: LoadGenerator) -> None:
    """Sends as the wishes file says, until SIGTERM or SIGINT; the summary is in `load.json`."""
    ended = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, ended.set)
    sending = asyncio.create_task(generator.run())
    try:
        while not ended.is_set() and not sending.done():
            generator.load = Wishes.read(state_dir).load
            replace(state_dir / "load.json", json.dumps(generator.summary()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 1)
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        replace(state_dir / "load.json", json.dumps(generator.summary()))


def _made(module: str, name: str) -> Any:
    """What a module of ours gives under that name, or when that is called, from a process of its own: what pictures are
    made with takes more memory than all else here, which only sends them."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as maker:
        return maker.submit(_found, module, name).result()


def _found(module: str, name: str) -> Any:
    found = getattr(importlib.import_module(module), name)
    return found() if callable(found) else found


if __name__ == "__main__":
    models, digits = "sandbox.walkthrough_models", "sandbox.digits"
    own = {_made(models, "SERVICE"): partial(_made, models, "images"), SCANS: partial(_made, digits, "scans")}
    asyncio.run(follow(Path(sys.argv[1]), LoadGenerator(sys.argv[2], _made(digits, "images"), others=own)))
