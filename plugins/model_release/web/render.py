"""HTML from what a page shows. Autoescape is on for every template, and nothing is ever marked safe."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).resolve().parent

NOTHING = "–"


def environment(prefix: str) -> Environment:
    """The templates, for pages below `prefix` (the path at which the app is mounted, without a slash at its end)."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["prefix"] = prefix
    made.filters |= {
        "moment": moment,
        "clock": clock,
        "count": count,
        "share": share,
        "bound": bound,
        "points": points,
        "evidence": evidence,
        "meter": meter,
        "number": number,
        "short": short,
    }
    return made


def moment(time: Any) -> str:
    """A time as people write it, in UTC; the browser shows how long ago it was."""
    try:
        found = datetime.fromisoformat(str(time))
    except ValueError:
        return NOTHING
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return found.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(time: Any) -> str:
    """The time of day alone, where the day stands beside."""
    return moment(time).rpartition(" ")[2]


def count(value: Any) -> str:
    """2790 → 2 790, with a space that does not break; no number is a dash, never a zero."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return NOTHING
    return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def share(value: Any) -> str:
    """0.0123 → 1.2 %; two digits below 0.1 %."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NOTHING
    percent = 100 * value
    if percent == 0:
        return "0 %"
    text = f"{percent:.1f}" if abs(percent) >= 0.1 else f"{float(f'{percent:.2g}'):f}".rstrip("0")
    return f"{text.removesuffix('.0')}\N{NO-BREAK SPACE}%"


def bound(value: Any) -> str:
    """A limit as it was written, up to three digits: 0.0075 → 0.75 %."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NOTHING
    return f"{100 * value:.3g}\N{NO-BREAK SPACE}%"


def points(now: Any, before: Any) -> str:
    """The difference of two shares in points: +1.2."""
    if not isinstance(now, int | float) or not isinstance(before, int | float):
        return ""
    difference = 100 * (now - before)
    return "±0" if abs(difference) < 0.05 else f"{difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def evidence(value: Any) -> str:
    """An evidence of 1 is none, and of 100 much: so many times as probable if the statement were false as if true."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NOTHING
    if value >= 10_000:
        return "over 10\N{NARROW NO-BREAK SPACE}000"
    if 0 < value < 0.001:
        return "under 0.001"
    return f"{value:.2g}" if value < 10 else count(math.floor(value))


def meter(progress: Any) -> int:
    """Whole percents of the way to a threshold, from 0 to 100."""
    if not isinstance(progress, int | float) or not math.isfinite(progress):
        return 0
    return max(0, min(100, math.floor(100 * progress)))


def number(value: Any) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NOTHING
    return f"{value:.4g}"


def short(version: Any) -> str:
    """The first half of a version's sixteen digits: enough to tell versions apart at a glance."""
    return NOTHING if not version else str(version)[:8]
