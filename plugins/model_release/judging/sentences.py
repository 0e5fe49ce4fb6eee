"""The words. A tired person at night reads one of these and knows what happened and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from .policy import RateLimit

_LONGEST = 60  # letters of a name in a sentence


def share(value: float) -> str:
    """0.045 → "4.5 %"; one decimal, and two digits below 0.1 %."""
    percent = 100 * value
    if percent == 0:
        return "0 %"
    text = f"{percent:.1f}" if percent >= 0.1 else f"{float(f'{percent:.2g}'):f}".rstrip("0")
    return f"{text.removesuffix('.0')} %"


def bound(value: float) -> str:
    """A limit as it was written, up to three digits: 0.0075 → "0.75 %"."""
    return f"{100 * value:.3g} %"


def count(value: float) -> str:
    """2790 → "2 790"."""
    return f"{int(value):,}".replace(",", " ")


def number(value: float) -> str:
    """A plain number, at most six digits."""
    return f"{value:.6g}"


def times(ratio: float) -> str:
    return "1 times" if ratio == 1 else f"{number(ratio)} times"


def evidence(value: float | None) -> str:
    """Rounded down, so that "200" is never said of 199.7."""
    if value is None:
        return "none"
    if value >= 1e6:
        return "over a million"
    if value >= 10:
        return count(math.floor(value))
    return number(math.floor(value * 10 + 1e-9) / 10)


def about(value: float) -> str:
    """Two digits, rounded up: 1 234 → "1 300"."""
    if value < 10:
        return str(math.ceil(value))
    step = 10 ** (int(math.log10(value)) - 1)
    return count(math.ceil(value / step) * step)


def duration(minutes: float) -> str:
    """0.4 → "25 s", 2 → "2 min", 360 → "6 h"."""
    seconds = minutes * 60
    if seconds < 55:
        return f"{max(5, math.ceil(seconds / 5) * 5)} s"
    if minutes < 120:
        return f"{math.ceil(minutes - 0.05)} min"
    hours = minutes / 60
    if hours < 48:
        return f"{number(math.ceil(hours * 2) / 2)} h"
    return f"{math.ceil(hours / 24)} days"


def name_of(text: str) -> str:
    """A label or a slice, whatever stands in it: printable, and no longer than a line bears."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_LONGEST]


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])


def plural(how_many: int, noun: str) -> str:
    return f"{count(how_many)} {noun}" if how_many == 1 else f"{count(how_many)} {noun}s"


@lru_cache(maxsize=256)
def limit(metric: RateLimit) -> str:
    """The limits of a metric, without a verb."""
    parts = []
    if metric.max_rate is not None:
        parts.append(rate_limit(metric))
    if metric.max_ratio is not None:
        parts.append(ratio_limit(metric))
    return " and ".join(parts) or "none, shown only"


def limits(metric: RateLimit, indifference: float = 1.0) -> str:
    """The limits with a verb, and how far beyond them a promotion still may be."""
    both = metric.max_rate is not None and metric.max_ratio is not None
    words = f"the {'limits are' if both else 'limit is'} {limit(metric)}"
    return (
        words if indifference == 1 else f"{words}, promoted below {times(indifference)} {'these' if both else 'that'}"
    )


def rate_limit(metric: RateLimit) -> str:
    return bound(metric.max_rate or 0.0)


def ratio_limit(metric: RateLimit) -> str:
    ratio = metric.max_ratio or 0.0
    words = "stable's own rate" if ratio == 1 else f"{times(ratio)} stable"
    return f"{words} (never below {bound(ratio * metric.floor)})" if metric.floor else words


def fact(metric: RateLimit, canary: dict[str, int], stable: dict[str, int], compared: bool, end: str = "") -> str:
    """ "14 of 310 canary requests failed (4.5 %, at least 1.8 %), 9 of 2 790 on stable (0.3 %)"; `end` is of the
    interval."""
    n, b = canary["requests"], canary["bad"]
    noun = metric.noun or "requests"
    if n == 0:
        return f"no canary {noun.removesuffix('s')} to count for {metric.name} yet"
    words = f"{count(b)} of {count(n)} canary {noun} {metric.verb} ({share(b / n)}{', ' if end else ''}{end})"
    m, s = stable["requests"], stable["bad"]
    if m:
        return f"{words}, {count(s)} of {count(m)} on stable ({share(s / m)})"
    return f"{words}, no {noun.removesuffix('s')} on stable to compare with" if compared else words


def tally(got: float | None, needed: float) -> str:
    return f"Evidence {evidence(got)}, {evidence(needed)} needed"


def at_deadline(risk: float, confidence: float | None) -> str:
    """How sure a promotion by the one look at the deadline is: by the policy's own risk, or by a confidence instead."""
    how = f"wrong in at most {share(risk)}" if confidence is None else f"with {share(confidence)} confidence"
    return f"By the look at the deadline, {how}"
