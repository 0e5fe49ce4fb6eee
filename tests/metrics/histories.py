"""What a gateway and its pods were scraped with, in short words, and the windows that are read of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from model_release.judging import Window
from model_release.metrics import Prometheus, read_windows
from model_release.spec import JudgeSpec

from .conftest import CANARY, NAMESPACE, OPENING, STABLE, History, at
from .stacks import Request

Serve = Callable[[History], Prometheus]
JudgeOf = Callable[..., JudgeSpec]
TEN = timedelta(seconds=10)
GATEWAY = {"job": "istio-ingressgateway", "instance": "10.0.0.1:15020"}


def read(prometheus: Prometheus, judge: JudgeSpec, seconds: float, **more: Any) -> list[Window]:
    options: dict[str, Any] = {"stable": STABLE, "window": TEN, "now": at(seconds + 10)} | more
    return read_windows(
        prometheus, judge, namespace=NAMESPACE, canary=CANARY, start=OPENING, end=at(seconds), **options
    )


def counts(windows: Sequence[Window], side: str) -> list[tuple[int | None, int | None, int | None]]:
    sides = [getattr(window, side) for window in windows]
    return [(s.requests, s.bad["errors"], s.bad["slow"]) for s in sides]


def gateway(history: History, revision: str, code: int, samples: dict[float, float]) -> None:
    history.add("istio_requests_total", GATEWAY | istio(revision) | {"response_code": str(code)}, samples)


def durations(history: History, revision: str, le: str, samples: dict[float, float]) -> None:
    history.add("istio_request_duration_milliseconds_bucket", GATEWAY | istio(revision) | {"le": le}, samples)


def istio(revision: str) -> dict[str, str]:
    return {
        "reporter": "source",
        "destination_workload": f"{revision}-deployment",
        "destination_workload_namespace": NAMESPACE,
    }


def up(history: History, moments: Sequence[float], value: float = 1, labels: dict[str, str] = GATEWAY) -> None:
    history.add("up", labels, dict.fromkeys(moments, value))


def traffic(seed: int, rate: float, begin: float, end: float, bad: float) -> list[Request]:
    chance = random.Random(seed)
    requests, moment = [], begin
    while (moment := moment + chance.expovariate(rate)) < end:
        code = 503 if chance.random() < bad else chance.choice([200, 200, 200, 400])
        requests.append(Request(moment, code, chance.choice([30, 240, 500, 501, 800, 20_000])))
    return requests


def truth(requests: Sequence[Request], scrapes: Sequence[float], windows: int) -> list[tuple[int, int, int]]:
    """Each request counts at the first scrape after it."""
    told = [[0, 0, 0] for _ in range(windows)]
    for request in requests:
        scrape = next((moment for moment in scrapes if moment >= request.moment), None)
        if scrape is None or not 0 < scrape <= 10 * windows:
            continue
        window = told[math.ceil(scrape / 10) - 1]
        window[0] += 1
        window[1] += request.code >= 500
        window[2] += request.duration_ms > 500
    return [(a, b, c) for a, b, c in told]
