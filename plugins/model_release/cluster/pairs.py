"""The same pictures, asked of the stable revision and of the canary that is at 0 %: no user meets it for that.

Both are asked through the gateway, at their tag addresses, as the smoke prediction is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import requests
import urllib3

from model_release.cluster.smoke import NO_ANSWER, NOT_YET, Line
from model_release.judging.pairs import Answer, Pairs

# Pictures at once, each asked of one side after the other: stable has users to answer meanwhile.
AT_ONCE = 2
# What is overloaded or on its way for a moment is asked again, so often and after so many seconds.
TRIES = 3
PAUSE = 0.5
_AGAIN = (*NOT_YET, 408, 429)
# Bytes of an answer; those of the handler have some hundreds.
LARGEST_ANSWER = 1 << 20
# Characters of a label, which stands in sentences.
_LONGEST = 100
# Seconds between two looks at whether it is to go on.
LOOK = 5.0

# The folder that it lies in, and what reads it: None, where it was removed since it was listed.
Picture = tuple[str, Callable[[], bytes | None]]
# Bytes of one; what is larger is left out, as clients' bodies are limited, too.
LARGEST_PICTURE = 8 << 20


def compare(
    pictures: Iterable[Picture],
    stable: Callable[[], Line],
    canary: Callable[[], Line],
    pairs: Pairs,
    look: Callable[[], object],
) -> None:
    """Asks both sides for each picture and adds what they said to `pairs`, until that is over or no picture is left.

    Asked again with the same pictures, it counts the same. One that is gone is left out: whoever collects pictures
    removes the oldest meanwhile, whatever they would be answered. `look` is called every few seconds and ends it by
    raising. Raises what reading a picture raises.
    """
    left = enumerate(pictures)
    ways: SimpleQueue[tuple[Line, Line]] = SimpleQueue()

    def both(number: int, picture: Picture) -> tuple[str, Answer, Answer] | None:
        folder, read = picture
        content = read()
        if content is None:
            return None
        body = [{"data": base64.b64encode(content).decode()}]
        ours = ways.get()
        try:
            # Turn by turn, so that neither always finds what the other has warmed.
            first, second = (0, 1) if number % 2 else (1, 0)
            said = {side: _asked(ours[side], body) for side in (first, second)}
        finally:
            ways.put(ours)
        return folder, said[0], said[1]

    with ExitStack() as opened, ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(AT_ONCE):
            ways.put((opened.enter_context(stable()), opened.enter_context(canary())))
        waiting: deque[Future[tuple[str, Answer, Answer] | None]] = deque()
        looked = time.monotonic()
        while not pairs.over:
            while len(waiting) < AT_ONCE and (following := next(left, None)) is not None:
                waiting.append(pool.submit(both, *following))
            if not waiting:
                return
            if (said := waiting.popleft().result()) is not None:
                pairs.add(*said)
            else:
                pairs.wanted -= 1
            if time.monotonic() - looked >= LOOK:
                look()
                looked = time.monotonic()


def _asked(line: Line, instances: Any) -> Answer:
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        began = time.perf_counter()
        try:
            with line.post(instances, stream=True) as response:
                status = response.status_code
                body = response.raw.read(LARGEST_ANSWER + 1, decode_content=True)
        except (requests.RequestException, urllib3.exceptions.HTTPError):
            continue
        seconds = time.perf_counter() - began
        if status == 200 and len(body) <= LARGEST_ANSWER and (labels := _labels(body)):
            return Answer(labels, seconds)
        if 400 <= status < 500 and status not in _AGAIN:
            return Answer({}, fault="refused")
    return Answer({}, fault="failed")


def _labels(body: bytes) -> Mapping[str, float] | None:
    """The labels of the one picture with their probabilities, best first; None for what is no such answer."""
    try:
        (given,) = json.loads(body)["predictions"]
        found = {_word(one["label"]): float(one["score"]) for one in (given if isinstance(given, list) else [given])}
    except NO_ANSWER:
        return None
    return found if all(map(math.isfinite, found.values())) else None


def _word(label: Any) -> str:
    """A label as it may stand in a log's line. What is cut or replaced is told apart by a digest: two labels that are
    only alike are no equal answers."""
    said = str(label)
    word = "".join(one if one.isprintable() else "?" for one in said[:_LONGEST])
    return word if word == said else f"{word}~{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
