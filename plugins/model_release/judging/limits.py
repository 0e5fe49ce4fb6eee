"""What is held against a limit: shares of bad requests, labels, numbers that are no shares; and how it is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

DEFAULT_PHRASES = {"errors": "failed", "slow": "were too slow"}


class PolicyError(ValueError):
    """A policy that cannot be judged by. The message is one line and begins with the field's path."""


def number(
    path: str, value: Any, low: float, high: float, *, right: str, closed: tuple[bool, bool] = (False, False)
) -> float:
    """`value` as a float within (low, high); `closed` says which ends belong to the interval."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PolicyError(f"{path}: {value!r} is not a number; {right}")
    above = value >= low if closed[0] else value > low
    below = value <= high if closed[1] else value < high
    if not (above and below):
        raise PolicyError(f"{path}: {value!r} is out of range; {right}")
    return float(value)


def whole(path: str, value: Any, least: int, right: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PolicyError(f"{path}: {value!r} is not a whole number of at least {least}; {right}")
    return value


def flag(path: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise PolicyError(f"{path}: {value!r} is neither true nor false")
    return value


def text(path: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise PolicyError(f"{path}: {value!r} is not a line of text")
    return value


def known(path: str, data: Any, allowed: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise PolicyError(f"{path}: a mapping is expected here, not {type(data).__name__}")
    for key in data:
        if key not in allowed:
            raise PolicyError(f"{path}.{key}: unknown field; known are {', '.join(allowed)}")
    return data


@dataclass(frozen=True)
class Slicing:
    """A metric is judged in each slice of the traffic, too: requests that have one value of the label `by`. One with
    fewer canary requests than `at_least` is not judged."""

    by: str
    at_least: int = 200

    def check(self, path: str) -> None:
        text(f"{path}.by", self.by)
        whole(f"{path}.at_least", self.at_least, 1, "the canary requests that a slice needs to be judged")


@dataclass(frozen=True)
class RateLimit:
    """One share of bad requests and its limits.

    `max_rate` is the share that may never be exceeded. `max_ratio` and `floor` say that the canary's share may
    not exceed `max_ratio` × max(stable's share, `floor`). With both limits, either one broken is a failure and
    both must hold for a pass. `observe`: computed and shown, never decides. `critical=False`: a failure bars
    the promotion and does not roll back by itself. `phrase` completes "14 of 310 canary requests …".
    `noun` is what is counted, where it is not requests: "14 of 310 canary answers …".
    `edges`: with `max_ratio`, the bucket edges of a latency histogram (milliseconds, rising) at which both sides are
    compared besides the limit itself; windows then carry, for each, how many requests were slower.
    `slices`: judged in each of them, too; windows then carry the counts of each.
    """

    name: str
    max_rate: float | None = None
    max_ratio: float | None = None
    floor: float = 0.0
    observe: bool = False
    critical: bool = True
    phrase: str | None = None
    edges: tuple[float, ...] = ()
    noun: str | None = None
    slices: Slicing | None = None

    def __post_init__(self) -> None:
        if isinstance(self.edges, list):
            object.__setattr__(self, "edges", tuple(self.edges))

    @property
    def verb(self) -> str:
        return self.phrase or DEFAULT_PHRASES.get(self.name, f"counted as {self.name}")

    def check(self, path: str) -> None:
        text(f"{path}.name", self.name)
        flag(f"{path}.observe", self.observe)
        flag(f"{path}.critical", self.critical)
        if self.phrase is not None:
            text(f"{path}.phrase", self.phrase)
        if self.noun is not None:
            text(f"{path}.noun", self.noun)
        if self.max_rate is not None:
            number(f"{path}.max_rate", self.max_rate, 0, 1, right="a share between 0 and 1, 0.02 for 2 %")
        number(f"{path}.floor", self.floor, 0, 1, right="a share from 0 to below 1", closed=(True, False))
        if self.max_ratio is not None:
            number(f"{path}.max_ratio", self.max_ratio, 0, 1e6, right="1.5 allows 1.5 times the stable's share")
            if self.max_ratio * self.floor >= 1:
                raise PolicyError(f"{path}.floor: max_ratio × floor is 1 or more, so no rate could break it")
        elif self.floor:
            raise PolicyError(f"{path}.floor: means nothing without max_ratio")
        if self.max_rate is None and self.max_ratio is None and not self.observe:
            raise PolicyError(f"{path}: a limit is missing; give max_rate, max_ratio or both, or observe: true")
        if self.edges:
            if self.max_ratio is None:
                raise PolicyError(f"{path}.edges: mean nothing without max_ratio; they are compared with stable's")
            for i, edge in enumerate(self.edges):
                number(f"{path}.edges[{i}]", edge, 0, math.inf, right="a bucket's upper edge in milliseconds")
            if sorted(set(self.edges)) != list(self.edges):
                raise PolicyError(f"{path}.edges: {list(self.edges)} do not rise")
        if self.slices is not None:
            if self.max_rate is None and self.max_ratio is None:
                raise PolicyError(f"{path}.slices: mean nothing without a limit; give max_rate, max_ratio or both")
            self.slices.check(f"{path}.slices")

    @classmethod
    def from_dict(cls, data: Any, path: str = "metric") -> RateLimit:
        given = known(path, data, tuple(f.name for f in fields(cls)))
        if "name" not in given:
            raise PolicyError(f"{path}.name: is missing")
        values = dict(given)
        if values.get("floor") is None:
            values.pop("floor", None)
        if not isinstance(values.get("edges", ()), (list, tuple)):
            raise PolicyError(f"{path}.edges: a list is expected here, not {type(values['edges']).__name__}")
        if values.get("slices") is not None:
            said = known(f"{path}.slices", values["slices"], tuple(f.name for f in fields(Slicing)))
            if "by" not in said:
                raise PolicyError(
                    f"{path}.slices.by: is missing; the label that tells slices apart, country for example"
                )
            values["slices"] = Slicing(**said)
        metric = cls(**values)
        metric.check(path)
        return metric

    def to_dict(self) -> dict[str, Any]:
        return spoken(self, always=("name",))


@dataclass(frozen=True)
class ShiftLimit:
    """How far the labels that a canary gives may be from those that stable gives at the same time.

    `max_shift` bounds the total variation between the two, 0 to 1: the share of the answers that would have to be
    another label to make them alike. `observe` and `critical` as in `RateLimit`.
    """

    name: str
    max_shift: float
    observe: bool = False
    critical: bool = True

    def check(self, path: str) -> None:
        text(f"{path}.name", self.name)
        number(f"{path}.max_shift", self.max_shift, 0, 1, right="a share between 0 and 1, 0.1 for 10 % of the answers")
        flag(f"{path}.observe", self.observe)
        flag(f"{path}.critical", self.critical)

    @classmethod
    def from_dict(cls, data: Any, path: str = "metric") -> ShiftLimit:
        if isinstance(data, Mapping) and (beside := sorted({"max_rate", "max_ratio", "floor"} & data.keys())):
            raise PolicyError(f"{path}.{beside[0]}: limits bad requests, and max_shift labels; one of both")
        given = known(path, data, tuple(f.name for f in fields(cls)))
        if "name" not in given:
            raise PolicyError(f"{path}.name: is missing")
        shift = cls(**given)
        shift.check(path)
        return shift

    def to_dict(self) -> dict[str, Any]:
        return spoken(self, always=("name", "max_shift"))


@dataclass(frozen=True)
class ValueLimit:
    """A number that is no share (queue depth, memory, a business figure), held against a threshold.

    A measurement fails above `max`, below `min`, or above `max_ratio` × the stable's value. After more than
    `failures_allowed` failures the canary is rolled back; more than `inconclusive_allowed` measurements that
    are not a number, or more than `consecutive_errors_allowed` errors in a row, make the verdict inconclusive
    (Argo Rollouts' four outcomes and their counters; docs/facts.md#argo-rollouts). It can veto and
    never promotes alone. `query` is carried for the record and named in sentences.
    """

    name: str
    max: float | None = None
    min: float | None = None
    max_ratio: float | None = None
    failures_allowed: int = 0
    inconclusive_allowed: int = 0
    consecutive_errors_allowed: int = 4
    observe: bool = False
    query: str | None = None

    def check(self, path: str) -> None:
        text(f"{path}.name", self.name)
        flag(f"{path}.observe", self.observe)
        for name in ("failures_allowed", "inconclusive_allowed", "consecutive_errors_allowed"):
            whole(f"{path}.{name}", getattr(self, name), 0, "0 allows none")
        for name in ("max", "min"):
            if getattr(self, name) is not None:
                number(f"{path}.{name}", getattr(self, name), -math.inf, math.inf, right="a plain number")
        if self.max_ratio is not None:
            number(f"{path}.max_ratio", self.max_ratio, 0, 1e6, right="1.2 allows 1.2 times the stable's value")
        if self.query is not None and not isinstance(self.query, str):
            raise PolicyError(f"{path}.query: {self.query!r} is not text")
        if self.max is None and self.min is None and self.max_ratio is None and not self.observe:
            raise PolicyError(f"{path}: a limit is missing; give max, min or max_ratio, or observe: true")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise PolicyError(f"{path}.min: {self.min} is above max {self.max}; every value would fail")

    @classmethod
    def from_dict(cls, data: Any, path: str = "value") -> ValueLimit:
        given = known(path, data, tuple(f.name for f in fields(cls)))
        if "name" not in given:
            raise PolicyError(f"{path}.name: is missing")
        value = cls(**given)
        value.check(path)
        return value

    def to_dict(self) -> dict[str, Any]:
        return spoken(self, always=("name",))


def spoken(entry: RateLimit | ShiftLimit | ValueLimit, always: tuple[str, ...]) -> dict[str, Any]:
    """The fields that differ from their default: a record stays as short as the file that was written."""
    said = {f.name: getattr(entry, f.name) for f in fields(entry)}
    given = {f.name: said[f.name] for f in fields(entry) if f.name in always or said[f.name] != f.default}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {name: asdict(value) if isinstance(value, Slicing) else value for name, value in plain.items()}
