"""What a release is judged by: the limits, the risks one accepts, and nothing about where counts come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

DEFAULT_PHRASES = {"errors": "failed", "slow": "were too slow"}


class PolicyError(ValueError):
    """A policy that cannot be judged by. The message is one line and begins with the field's path."""


def _number(
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


def _whole(path: str, value: Any, least: int, right: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PolicyError(f"{path}: {value!r} is not a whole number of at least {least}; {right}")
    return value


def _flag(path: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise PolicyError(f"{path}: {value!r} is neither true nor false")
    return value


def _text(path: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise PolicyError(f"{path}: {value!r} is not a line of text")
    return value


def _known(path: str, data: Any, allowed: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise PolicyError(f"{path}: a mapping is expected here, not {type(data).__name__}")
    for key in data:
        if key not in allowed:
            raise PolicyError(f"{path}.{key}: unknown field; known are {', '.join(allowed)}")
    return data


@dataclass(frozen=True)
class MetricPolicy:
    """One share of bad requests and its limits.

    `max_rate` is the share that may never be exceeded. `max_ratio` and `floor` say that the canary's share may
    not exceed `max_ratio` × max(stable's share, `floor`). With both limits, either one broken is a failure and
    both must hold for a pass. `observe`: computed and shown, never decides. `critical=False`: a failure bars
    the promotion and does not roll back by itself. `phrase` completes "14 of 310 canary requests …".
    """

    name: str
    max_rate: float | None = None
    max_ratio: float | None = None
    floor: float = 0.0
    observe: bool = False
    critical: bool = True
    phrase: str | None = None

    @property
    def verb(self) -> str:
        return self.phrase or DEFAULT_PHRASES.get(self.name, f"counted as {self.name}")

    def check(self, path: str) -> None:
        _text(f"{path}.name", self.name)
        _flag(f"{path}.observe", self.observe)
        _flag(f"{path}.critical", self.critical)
        if self.phrase is not None:
            _text(f"{path}.phrase", self.phrase)
        if self.max_rate is not None:
            _number(f"{path}.max_rate", self.max_rate, 0, 1, right="a share between 0 and 1, 0.02 for 2 %")
        _number(f"{path}.floor", self.floor, 0, 1, right="a share from 0 to below 1", closed=(True, False))
        if self.max_ratio is not None:
            _number(f"{path}.max_ratio", self.max_ratio, 0, 1e6, right="1.5 allows 1.5 times the stable's share")
            if self.max_ratio * self.floor >= 1:
                raise PolicyError(f"{path}.floor: max_ratio × floor is 1 or more, so no rate could break it")
        elif self.floor:
            raise PolicyError(f"{path}.floor: means nothing without max_ratio")
        if self.max_rate is None and self.max_ratio is None and not self.observe:
            raise PolicyError(f"{path}: a limit is missing; give max_rate, max_ratio or both, or observe: true")

    @classmethod
    def from_dict(cls, data: Any, path: str = "metric") -> MetricPolicy:
        given = _known(path, data, tuple(f.name for f in fields(cls)))
        if "name" not in given:
            raise PolicyError(f"{path}.name: is missing")
        values = dict(given)
        if values.get("floor") is None:
            values.pop("floor", None)
        metric = cls(**values)
        metric.check(path)
        return metric

    def to_dict(self) -> dict[str, Any]:
        return _spoken(self, always=("name",))


@dataclass(frozen=True)
class ValueMetric:
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
        _text(f"{path}.name", self.name)
        _flag(f"{path}.observe", self.observe)
        for name in ("failures_allowed", "inconclusive_allowed", "consecutive_errors_allowed"):
            _whole(f"{path}.{name}", getattr(self, name), 0, "0 allows none")
        for name in ("max", "min"):
            if getattr(self, name) is not None:
                _number(f"{path}.{name}", getattr(self, name), -math.inf, math.inf, right="a plain number")
        if self.max_ratio is not None:
            _number(f"{path}.max_ratio", self.max_ratio, 0, 1e6, right="1.2 allows 1.2 times the stable's value")
        if self.query is not None and not isinstance(self.query, str):
            raise PolicyError(f"{path}.query: {self.query!r} is not text")
        if self.max is None and self.min is None and self.max_ratio is None and not self.observe:
            raise PolicyError(f"{path}: a limit is missing; give max, min or max_ratio, or observe: true")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise PolicyError(f"{path}.min: {self.min} is above max {self.max}; every value would fail")

    @classmethod
    def from_dict(cls, data: Any, path: str = "value") -> ValueMetric:
        given = _known(path, data, tuple(f.name for f in fields(cls)))
        if "name" not in given:
            raise PolicyError(f"{path}.name: is missing")
        value = cls(**given)
        value.check(path)
        return value

    def to_dict(self) -> dict[str, Any]:
        return _spoken(self, always=("name",))


@dataclass(frozen=True)
class Policy:
    """How one step of a release is judged.

    `false_rollback` (α) bounds the chance that a good canary is rolled back during the whole release of
    `steps` steps, over all metrics and any number of looks. `false_promotion` (β) bounds the chance that a
    canary at or beyond a limit is promoted. `min_requests`: fewer canary requests never promote. `warm_up`:
    so many first windows are shown and not judged. `traffic`: the share the canary should get, None where it
    is not to be checked. `no_data_limit`: so many windows in a row without data end the watch.
    `design_effect`: the burstiness assumed until the stable's own windows show it (1 = requests fail
    independently; see README.md). `guard`: a canary that was judged already is only watched on, as in the bake or
    while a person is asked; these windows may stop it and never promote it.
    """

    metrics: tuple[MetricPolicy, ...]
    false_rollback: float = 0.01
    false_promotion: float = 0.05
    min_requests: int = 100
    warm_up: int = 0
    traffic: float | None = None
    steps: int = 1
    no_data_limit: int = 6
    design_effect: float = 4.0
    guard: bool = False
    values: tuple[ValueMetric, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        object.__setattr__(self, "values", tuple(self.values))
        self.check()

    @cached_property
    def deciding(self) -> tuple[MetricPolicy, ...]:
        return tuple(m for m in self.metrics if not m.observe)

    @cached_property
    def needed_against(self) -> float:
        """The evidence that rolls back: α split over the deciding metrics and the steps, turned over."""
        return len(self.deciding) * self.steps / self.false_rollback

    @cached_property
    def needed_for(self) -> float:
        """The evidence that promotes. β is not split: a bad canary must fool its own metric."""
        return 1 / self.false_promotion

    @cached_property
    def needed_traffic(self) -> float:
        return self.steps / self.false_rollback

    def check(self, path: str = "policy") -> None:
        for name in ("false_rollback", "false_promotion"):
            _number(f"{path}.{name}", getattr(self, name), 0, 0.5, right="a risk between 0 and 0.5, 0.01 for 1 %")
        _whole(f"{path}.min_requests", self.min_requests, 1, "the canary requests that a promotion needs")
        _whole(f"{path}.warm_up", self.warm_up, 0, "the first windows that are not judged")
        _whole(f"{path}.steps", self.steps, 1, "the number of steps in the release")
        _whole(f"{path}.no_data_limit", self.no_data_limit, 1, "the windows without data that end the watch")
        if self.traffic is not None:
            right = "the canary's share from 0 to 1, 0.1 for 10 %"
            _number(f"{path}.traffic", self.traffic, 0, 1, right=right, closed=(True, True))
        right = "1 for independent requests, more for bursts"
        if not isinstance(self.guard, bool):
            raise PolicyError(f"{path}.guard: {self.guard!r} is neither true nor false")
        _number(f"{path}.design_effect", self.design_effect, 1, 1e6, right=right, closed=(True, True))
        _check_all(f"{path}.metrics", self.metrics)
        _check_all(f"{path}.values", self.values)
        if not self.deciding:
            raise PolicyError(
                f"{path}.metrics: no metric decides; give at least one share with a limit and without observe"
            )

    @classmethod
    def from_dict(cls, data: Any, path: str = "policy") -> Policy:
        given = dict(_known(path, data, tuple(f.name for f in fields(cls))))
        for kind, entry_type in (("metrics", MetricPolicy), ("values", ValueMetric)):
            entries = given.get(kind, ())
            if isinstance(entries, (str, bytes, Mapping)) or not hasattr(entries, "__iter__"):
                raise PolicyError(f"{path}.{kind}: a list is expected here, not {type(entries).__name__}")
            given[kind] = tuple(entry_type.from_dict(entry, f"{path}.{kind}[{i}]") for i, entry in enumerate(entries))
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("metrics", "values")}
        out["metrics"] = [m.to_dict() for m in self.metrics]
        if self.values:
            out["values"] = [v.to_dict() for v in self.values]
        return out


def _check_all(path: str, entries: Sequence[MetricPolicy | ValueMetric]) -> None:
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        entry.check(f"{path}[{i}]")
        if entry.name in seen:
            raise PolicyError(f"{path}[{i}].name: {entry.name!r} is there twice")
        seen.add(entry.name)


def _spoken(entry: MetricPolicy | ValueMetric, always: tuple[str, ...]) -> dict[str, Any]:
    """The fields that differ from their default: a record stays as short as the file that was written."""
    return {
        f.name: getattr(entry, f.name) for f in fields(entry) if f.name in always or getattr(entry, f.name) != f.default
    }
