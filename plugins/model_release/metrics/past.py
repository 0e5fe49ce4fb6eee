"""What one revision did before a moment: its windows, as the judge wants them of stable before a release, and its
traffic, as a plan wants it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.judging import Past, Side
from model_release.judging.past import LONGEST
from model_release.judging.shift import binned
from model_release.metrics.profiles import RevisionMetrics
from model_release.metrics.prometheus import BUDGET, Prometheus
from model_release.metrics.windows import WindowReader
from model_release.spec import JudgeSpec

# Windows read at a time: six times three to seven queries for all of them. Each part also reads the five minutes
# before it.
PART = 120
# The newest windows in which traffic is counted apart: a service that was just found by its users is as busy as it is
# now, and one that rests for a moment as busy as it was.
_NOW = 30


@dataclass(frozen=True)
class Before:
    """A revision before a moment. `requests_per_second`: over the windows that were counted or over the newest thirty
    of them, whichever is more, None where none was. `windows` were counted, those without a request, too. `trouble`:
    what kept it from being more, or nothing."""

    past: Past
    requests_per_second: float | None
    windows: int
    trouble: str = ""


def read_before(
    prometheus: Prometheus,
    judge: JudgeSpec,
    *,
    namespace: str,
    revision: str,
    since: datetime,
    before: datetime,
    window: timedelta,
    metrics: RevisionMetrics | None = None,
    seconds: float = BUDGET,
) -> Before:
    """What there is of the last 720 windows, and what kept it from being more: a sentence, or nothing.

    The windows end one window before `before`, so that all of them are complete whenever this is read, and read again
    it says the same; none begins before `since`, when the name began to mean this revision. They are read newest first,
    for `seconds` in all: what is refused, or not there in time, only ends it. A window without data is left out, and so
    is one without a request, which tells nothing; neither is ever 0.
    """
    deadline, end, left = time.monotonic() + seconds, before - window, LONGEST
    sides: list[Side] = []
    labels: dict[str, Counter[str]] = {}
    trouble = ""
    while number := min(PART, left, max((end - since) // window, 0)):
        start = end - number * window
        reader = WindowReader(
            prometheus,
            judge,
            namespace=namespace,
            canary=revision,
            stable=None,
            start=start,
            window=window,
            metrics=metrics,
            part=number * window,
        )
        try:
            windows = reader.read(end, now=before, seconds=deadline - time.monotonic())
        except (MetricsRefused, MetricsUnavailable) as error:
            trouble = str(error)
            break
        for one in windows:
            for name, counts in one.canary.labels.items():
                labels.setdefault(name, Counter()).update(counts or {})
        sides[:0] = [replace(one.canary, labels={}, slices={}) for one in windows]
        end, left = start, left - number
    counted = [side.requests for side in sides if side.requests is not None]
    rates = [sum(some) / (len(some) * window.total_seconds()) for some in (counted, counted[-_NOW:]) if some]
    told = tuple(side for side in sides if side.requests)
    given = {name: binned(counts) for name, counts in labels.items() if counts}
    return Before(Past(told, revision, given), max(rates, default=None), len(counted), trouble)
