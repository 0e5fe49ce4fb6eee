"""What was counted: one window of time, for the canary and for the stable revision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .verdict import written

# Above this a float no longer tells neighbouring whole numbers apart.
LARGEST_COUNT = 2**53
# What a side may say beside its requests and the bad ones, each by metric.
_MORE = ("edges", "labels", "totals", "slices")
_UNUSUAL = {"NaN": math.nan, "+Inf": math.inf, "Inf": math.inf, "-Inf": -math.inf}


class EvidenceError(ValueError):
    """Counts that cannot be true. The message is one line and begins with the field's path."""


def _known(path: str, data: Any, allowed: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise EvidenceError(f"{path}: a mapping is expected here, not {type(data).__name__}")
    for key in data:
        if key not in allowed:
            raise EvidenceError(f"{path}.{key}: unknown field; known are {', '.join(allowed)}")
    return data


def _count(path: str, value: Any) -> int | None:
    """A count, or None for no data (null or NaN). Rates and averages are refused: they are no whole numbers."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise EvidenceError(f"{path}: {value!r} is not a count; a whole number or null is expected")
    if value < 0:
        raise EvidenceError(f"{path}: {value!r} is negative; a counter's increase cannot be")
    if value > LARGEST_COUNT or value != int(value):
        raise EvidenceError(f"{path}: {value!r} is not a whole number up to 2^53; counts, never rates")
    return int(value)


def _measured(path: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) and value in _UNUSUAL:
        return _UNUSUAL[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise EvidenceError(f"{path}: {value!r} is not a number; a number, null or Prometheus's NaN is expected")
    return float(value)


def _moment(path: str, value: Any) -> None:
    if value is None:
        return
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise EvidenceError(f"{path}: {value!r} is not an ISO 8601 time") from None


def _given(path: str, counts: Any) -> dict[str, int] | None:
    """Counts by label, None for no data."""
    if counts is None:
        return None
    if not isinstance(counts, Mapping):
        raise EvidenceError(f"{path}: a mapping of label to count is expected here, or null")
    out: dict[str, int] = {}
    for label, value in counts.items():
        count = _count(f"{path}.{label}", value)
        if count is None:
            raise EvidenceError(f"{path}.{label}: null; a label that was not given is left out, and no data is null")
        out[str(label)] = count
    return out


def _slices(path: str, counts: Any) -> dict[str, tuple[int, int]] | None:
    """Requests and bad ones by slice, None for no data."""
    if counts is None:
        return None
    if not isinstance(counts, Mapping):
        raise EvidenceError(f"{path}: a mapping of slice to [requests, bad] is expected here, or null")
    out: dict[str, tuple[int, int]] = {}
    for name, pair in counts.items():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise EvidenceError(f"{path}.{name}: {pair!r} is not [requests, bad]")
        requests, bad = _count(f"{path}.{name}[0]", pair[0]), _count(f"{path}.{name}[1]", pair[1])
        if requests is None or bad is None:
            raise EvidenceError(f"{path}.{name}: null; a slice without requests is left out, and no data is null")
        if bad > requests:
            raise EvidenceError(f"{path}.{name}: {bad} bad of {requests} requests cannot be")
        out[str(name)] = (requests, bad)
    return out


@dataclass(frozen=True)
class Side:
    """One revision's requests in a window, and how many of them were bad in the eyes of each metric.

    `edges`: for a metric on durations, how many requests were slower than each of its policy's `edges`, in their order.
    `labels`: for a metric on labels, how often each was given; labels that were not given may be left out.
    `totals`: for a metric that counts something else than requests (answers, orders), how many there were.
    `slices`: for a metric that is judged by slices, too, the requests and the bad ones of each; those without a request
    may be left out.
    """

    requests: int | None = None
    bad: Mapping[str, int | None] = field(default_factory=dict)
    edges: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, int] | None] = field(default_factory=dict)
    totals: Mapping[str, int | None] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, tuple[int, int]] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "requests", _count("side.requests", self.requests))
        if not isinstance(self.bad, Mapping):
            raise EvidenceError("side.bad: a mapping of metric to count is expected here")
        bad = {str(name): _count(f"side.bad.{name}", value) for name, value in self.bad.items()}
        if self.totals:
            totals = {str(name): _count(f"side.totals.{name}", value) for name, value in self.totals.items()}
            object.__setattr__(self, "totals", totals)
        object.__setattr__(self, "bad", bad)
        for name, value in bad.items():
            of = self.total(name)
            if of is not None and value is not None and value > of:
                raise EvidenceError(f"side.bad.{name}: {value} bad of {of} requests cannot be")
        if self.edges:
            object.__setattr__(self, "edges", {str(name): self._slower(name, at) for name, at in self.edges.items()})
        if self.labels:
            given = {str(name): _given(f"side.labels.{name}", counts) for name, counts in self.labels.items()}
            object.__setattr__(self, "labels", given)
        if self.slices:
            sliced = {str(name): _slices(f"side.slices.{name}", counts) for name, counts in self.slices.items()}
            object.__setattr__(self, "slices", sliced)

    def total(self, name: str) -> int | None:
        """Of how many a metric's bad ones are a share; None for no data."""
        return self.totals.get(name, self.requests)

    def _slower(self, name: str, counts: Any) -> tuple[int | None, ...]:
        if isinstance(counts, (str, bytes, Mapping)) or not isinstance(counts, Iterable):
            raise EvidenceError(f"side.edges.{name}: a list of counts is expected here, one for each edge")
        slower = tuple(_count(f"side.edges.{name}[{i}]", value) for i, value in enumerate(counts))
        known = [value for value in slower if value is not None]
        if sorted(known, reverse=True) != known or (self.requests is not None and known and known[0] > self.requests):
            raise EvidenceError(f"side.edges.{name}: {list(slower)} cannot be the requests slower than rising edges")
        return slower

    @classmethod
    def from_dict(cls, data: Any, path: str) -> Side:
        given = _known(path, data, ("requests", "bad", *_MORE))
        bad = given.get("bad")
        more = {name: {} if given.get(name) is None else given[name] for name in _MORE}
        for name, counts in more.items():
            if not isinstance(counts, Mapping):
                raise EvidenceError(f"{path}.{name}: a mapping of metric to counts is expected here")
        try:
            return cls(given.get("requests"), {} if bad is None else bad, **more)
        except EvidenceError as refusal:
            raise EvidenceError(path + str(refusal).removeprefix("side")) from None

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"requests": self.requests, "bad": dict(self.bad)}
        if self.edges:
            out["edges"] = {name: list(counts) for name, counts in self.edges.items()}
        if self.totals:
            out["totals"] = dict(self.totals)
        if self.labels:
            out["labels"] = {name: None if counts is None else dict(counts) for name, counts in self.labels.items()}
        if self.slices:
            out["slices"] = {
                name: None if counts is None else {one: list(pair) for one, pair in counts.items()}
                for name, counts in self.slices.items()
            }
        return out


@dataclass(frozen=True)
class Window:
    """The increases of the counters between `start` and `end`; windows do not overlap.

    None for a count means that it could not be measured (no data), which is not zero. `stable=None` means
    that there is no stable revision beside the canary, as after the promotion: nothing is missing then. `share` is the
    canary's part of the traffic (0 to 1) that was asked for while the window was counted, where it is known.
    `values` holds the value metrics' measurements, `error` the query that failed, in one line.
    """

    canary: Side
    stable: Side | None = None
    start: str | None = None
    end: str | None = None
    values: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    error: str | None = None
    share: float | None = None

    @property
    def seconds(self) -> float | None:
        """The window's length; None where its ends are not both known."""
        if self.start is None or self.end is None:
            return None
        try:
            length = (datetime.fromisoformat(self.end) - datetime.fromisoformat(self.start)).total_seconds()
        except TypeError:  # one end has a time zone and the other has none
            return None
        return length if length > 0 else None

    def __post_init__(self) -> None:
        _moment("window.start", self.start)
        _moment("window.end", self.end)
        if self.error is not None and not isinstance(self.error, str):
            raise EvidenceError(f"window.error: {self.error!r} is not text")
        if self.share is not None:
            number = isinstance(self.share, (int, float)) and not isinstance(self.share, bool)
            if not (number and 0 <= self.share <= 1):
                raise EvidenceError(f"window.share: {self.share!r} is not a share from 0 to 1, 0.1 for 10 %")

    @classmethod
    def from_dict(cls, data: Any, path: str = "window") -> Window:
        given = _known(path, data, ("start", "end", "share", "canary", "stable", "values", "error"))
        if given.get("canary") is None:
            raise EvidenceError(f"{path}.canary: is missing; its counts may be null, it may not")
        values: dict[str, dict[str, float | None]] = {}
        measured = given["values"] if given.get("values") is not None else {}
        if not isinstance(measured, Mapping):
            raise EvidenceError(f"{path}.values: a mapping of name to measurements is expected here")
        for name, sides in measured.items():
            where = f"{path}.values.{name}"
            entry = _known(where, sides, ("canary", "stable"))
            values[str(name)] = {s: _measured(f"{where}.{s}", entry.get(s)) for s in ("canary", "stable")}
        stable = given.get("stable")
        canary = Side.from_dict(given["canary"], f"{path}.canary")
        beside = None if stable is None else Side.from_dict(stable, f"{path}.stable")
        try:
            return cls(
                canary, beside, given.get("start"), given.get("end"), values, given.get("error"), given.get("share")
            )
        except EvidenceError as refusal:
            raise EvidenceError(path + str(refusal).removeprefix("window")) from None

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "start": self.start,
            "end": self.end,
            "canary": self.canary.to_dict(),
            "stable": None if self.stable is None else self.stable.to_dict(),
        }
        if self.share is not None:
            out["share"] = self.share
        if self.values:
            out["values"] = {n: {s: written(v) for s, v in sides.items()} for n, sides in self.values.items()}
        if self.error:
            out["error"] = self.error
        return out


def windows_from(data: Any, path: str = "windows", first: int = 0) -> list[Window]:
    """A list of windows from JSON, from the `first` on; the error names the window's place in the list."""
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise EvidenceError(f"{path}: a list of windows is expected here, not {type(data).__name__}")
    return [Window.from_dict(entry, f"{path}[{i}]") for i, entry in enumerate(data) if i >= first]
