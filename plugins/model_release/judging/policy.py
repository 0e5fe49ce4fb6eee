"""What a release is judged by: the limits, the risks one accepts, and nothing about where counts come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from .limits import PolicyError, RateLimit, ShiftLimit, ValueLimit, known, number, whole

__all__ = ["Policy", "PolicyError", "Ramp", "RateLimit", "ShiftLimit", "ValueLimit"]

# Of the risk that is kept for looks at a deadline the first has so much, and each later one half of what is then left.
FIRST_LOOK = 0.9


@dataclass(frozen=True)
class Ramp:
    """The canary's share is chosen as the evidence allows, so that a bad one hurts about `budget` requests at most.

    `most`: the largest share (0 to 1) before the promotion. The choice itself is in ramp.py.
    """

    budget: float = 20.0
    most: float = 0.35

    def check(self, path: str) -> None:
        number(f"{path}.budget", self.budget, 0, 1e9, right="the requests that a bad canary may hurt, 20 for example")
        right = "the largest share of the traffic before the promotion, from 0.01 to below 1"
        number(f"{path}.most", self.most, 0.01, 1, right=right, closed=(True, False))


@dataclass(frozen=True)
class Policy:
    """How a release is judged: one test over all looks, metrics and shares of the traffic.

    `false_rollback` (α) bounds the chance that a canary within its limits is rolled back, over all metrics and any
    number of looks. `false_promotion` (β) bounds the chance that a canary at or beyond `indifference` (γ) times a limit
    is promoted; between the limit and γ times it either may happen, as in Wald's sequential test (1947). `steps`: into
    how many tests the caller splits the release, which then share α; 1 where the evidence is carried over the shares.

    `min_requests`: fewer canary requests never promote. `warm_up`: so many first windows at each share are shown, and
    not judged. `traffic`: the share the canary should get, None where it is not to be checked; a window's own `share`
    goes before it. `no_data_limit`: so many windows in a row without data end the watch. `design_effect`: the
    burstiness assumed until the stable's own windows show it (1 = requests fail independently). `deadline_windows`: how
    many windows the release may take, over which the bets that start later are spread. `guard`: a canary that was
    judged already is only watched on, as in the bake or while a person is asked; these windows may stop it and never
    promote it.

    `shares` are the steps of a release whose windows carry their share, `ramp` chooses them: with either, a verdict
    says `open` when the canary may have more.

    `shifts` are limits on labels; in JSON they are those of `metrics` that have a `max_shift`.

    `answered`: so many first windows are evidence and decide nothing, since a person has answered what they said; what
    made their figures doubtful (no data, the split, values) begins anew after them. `least_windows`: promoted in no
    fewer windows. `deadline_confidence`: what is open at the deadline is promoted if it is shown with this confidence
    to be below `indifference` times each limit, instead of with that of `false_promotion`. `looked`: so many looks at a
    deadline were before, of a release whose deadline was put off; all of them together have the risk of one.
    """

    metrics: tuple[RateLimit, ...]
    false_rollback: float = 0.01
    false_promotion: float = 0.05
    min_requests: int = 100
    warm_up: int = 0
    traffic: float | None = None
    steps: int = 1
    no_data_limit: int = 6
    design_effect: float = 4.0
    guard: bool = False
    values: tuple[ValueLimit, ...] = field(default=())
    indifference: float = 1.0
    deadline_windows: int = 360
    shares: tuple[float, ...] = ()
    ramp: Ramp | None = None
    shifts: tuple[ShiftLimit, ...] = ()
    answered: int = 0
    least_windows: int = 1
    deadline_confidence: float | None = None
    looked: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        object.__setattr__(self, "shifts", tuple(self.shifts))
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "shares", tuple(self.shares))
        self.check()

    @cached_property
    def deciding(self) -> tuple[RateLimit, ...]:
        return tuple(m for m in self.metrics if not m.observe)

    @cached_property
    def limits(self) -> tuple[RateLimit | ShiftLimit, ...]:
        """All that JSON calls `metrics`: shares of bad requests, then labels."""
        return (*self.metrics, *self.shifts)

    @cached_property
    def needed_against(self) -> float:
        """The evidence that rolls back: α split over the deciding metrics and the steps, turned over."""
        shifts = sum(not shift.observe for shift in self.shifts)
        return (len(self.deciding) + shifts) * self.steps / self.false_rollback

    @cached_property
    def needed_for(self) -> float:
        """The evidence that promotes at any look. The other half of β is kept for the looks at the deadline; it is
        not split over metrics, since a bad canary must fool its own."""
        return 2 / self.false_promotion

    @cached_property
    def deadline_risk(self) -> float:
        """The chance that this look at the deadline may be wrong: its part of the half of β that is kept for all."""
        return self.false_promotion / 2 * self._look

    @cached_property
    def confident_risk(self) -> float | None:
        """The same where `deadline_confidence` says it, whose counterpart is then the chance of all looks together."""
        return None if self.deadline_confidence is None else (1 - self.deadline_confidence) * self._look

    @property
    def _look(self) -> float:
        return FIRST_LOOK if not self.looked else (1 - FIRST_LOOK) / 2**self.looked

    @cached_property
    def needed_traffic(self) -> float:
        return self.steps / self.false_rollback

    def check(self, path: str = "policy") -> None:
        for name in ("false_rollback", "false_promotion"):
            number(f"{path}.{name}", getattr(self, name), 0, 0.5, right="a risk between 0 and 0.5, 0.01 for 1 %")
        whole(f"{path}.min_requests", self.min_requests, 1, "the canary requests that a promotion needs")
        whole(f"{path}.warm_up", self.warm_up, 0, "the first windows that are not judged")
        whole(f"{path}.steps", self.steps, 1, "the number of steps in the release")
        whole(f"{path}.no_data_limit", self.no_data_limit, 1, "the windows without data that end the watch")
        if self.traffic is not None:
            right = "the canary's share from 0 to 1, 0.1 for 10 %"
            number(f"{path}.traffic", self.traffic, 0, 1, right=right, closed=(True, True))
        right = "1 for independent requests, more for bursts"
        if not isinstance(self.guard, bool):
            raise PolicyError(f"{path}.guard: {self.guard!r} is neither true nor false")
        number(f"{path}.design_effect", self.design_effect, 1, 1e6, right=right, closed=(True, True))
        right = "1 promotes below the limit only, 2 anywhere below twice the limit"
        number(f"{path}.indifference", self.indifference, 1, 100, right=right, closed=(True, True))
        whole(f"{path}.deadline_windows", self.deadline_windows, 2, "the windows that the release may take")
        whole(f"{path}.answered", self.answered, 0, "the first windows whose verdict a person has answered")
        whole(f"{path}.looked", self.looked, 0, "the looks at a deadline before this one")
        whole(f"{path}.least_windows", self.least_windows, 1, "the windows before which nothing is promoted")
        if self.deadline_confidence is not None:
            right = "the confidence with which a promotion is shown at the deadline, 0.9 for 90 %"
            number(f"{path}.deadline_confidence", self.deadline_confidence, 0.5, 1, right=right, closed=(True, False))
        for i, part in enumerate(self.shares):
            number(f"{path}.shares[{i}]", part, 0, 1, right="a step's share of the traffic, 0.1 for 10 %")
        if sorted(set(self.shares)) != list(self.shares):
            raise PolicyError(f"{path}.shares: {list(self.shares)} do not rise")
        if self.ramp is not None:
            if self.shares:
                raise PolicyError(f"{path}.ramp: chooses the shares, and {path}.shares gives them; one of both")
            self.ramp.check(f"{path}.ramp")
        _check_all(f"{path}.metrics", self.limits)
        _check_all(f"{path}.values", self.values)
        if not self.deciding:
            raise PolicyError(
                f"{path}.metrics: no metric decides; give at least one share with a limit and without observe"
            )

    @classmethod
    def from_dict(cls, data: Any, path: str = "policy") -> Policy:
        given = dict(known(path, data, tuple(f.name for f in fields(cls) if f.name != "shifts")))
        for kind in ("metrics", "values"):
            entries = given.get(kind, ())
            if isinstance(entries, (str, bytes, Mapping)) or not hasattr(entries, "__iter__"):
                raise PolicyError(f"{path}.{kind}: a list is expected here, not {type(entries).__name__}")
            read = [_kind_of(kind, entry).from_dict(entry, f"{path}.{kind}[{i}]") for i, entry in enumerate(entries)]
            given[kind] = tuple(entry for entry in read if not isinstance(entry, ShiftLimit))
            if kind == "metrics":
                given["shifts"] = tuple(entry for entry in read if isinstance(entry, ShiftLimit))
        shares = given.get("shares", ())
        if isinstance(shares, (str, bytes, Mapping)) or not hasattr(shares, "__iter__"):
            raise PolicyError(f"{path}.shares: a list is expected here, not {type(shares).__name__}")
        if given.get("ramp") is not None:
            given["ramp"] = Ramp(**known(f"{path}.ramp", given["ramp"], tuple(f.name for f in fields(Ramp))))
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        unsaid = ("answered", "least_windows", "deadline_confidence", "looked")
        apart = ("metrics", "shifts", "values", "shares", "ramp", *unsaid)
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        if self.shares:
            out["shares"] = list(self.shares)
        if self.ramp is not None:
            out["ramp"] = {"budget": self.ramp.budget, "most": self.ramp.most}
        for name in unsaid:
            if getattr(self, name) != getattr(type(self), name):
                out[name] = getattr(self, name)
        out["metrics"] = [m.to_dict() for m in self.limits]
        if self.values:
            out["values"] = [v.to_dict() for v in self.values]
        return out


def _kind_of(kind: str, entry: Any) -> type[RateLimit] | type[ShiftLimit] | type[ValueLimit]:
    if kind == "values":
        return ValueLimit
    return ShiftLimit if isinstance(entry, Mapping) and "max_shift" in entry else RateLimit


def _check_all(path: str, entries: Sequence[RateLimit | ShiftLimit | ValueLimit]) -> None:
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        entry.check(f"{path}[{i}]")
        if entry.name in seen:
            raise PolicyError(f"{path}[{i}].name: {entry.name!r} is there twice")
        seen.add(entry.name)
