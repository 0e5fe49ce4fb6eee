"""What a replay shows, what may be kept of it, and how another policy than the recorded one takes a step's place."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .judge import Judge
from .policy import Policy
from .verdict import Verdict
from .window import EvidenceError, Side, Window

# What a step's policy says of its place in the release.
_PLACE = ("traffic", "steps", "guard", "shares", "ramp", "answered", "least_windows", "looked")


@dataclass(frozen=True)
class Look:
    """One look of a replayed release: after `window` windows of a step, the judge said `verdict`."""

    percent: int
    opened: str
    window: int
    end: str | None
    verdict: Verdict

    @property
    def line(self) -> str:
        """The look as one line for a log or a terminal."""
        when = f"{self.end}  " if self.end else ""
        return f"{when}{self.percent:>3} %  window {self.window:>3}  {self.verdict.decision:<12}  {self.verdict.reason}"


@dataclass
class Replay:
    """One step as far as it was replayed. `began`: all that its judge was told before the first window."""

    percent: int
    opened: str
    began: tuple[Any, ...]
    judge: Judge
    taken: list[Any] = field(default_factory=list)  # the windows, as recorded
    looks: list[Look] = field(default_factory=list)

    def go_on(self, recorded: Sequence[Any], windows: Sequence[Window]) -> None:
        """Looks once more after each of these windows, until one decides."""
        for entry, window in zip(recorded, windows, strict=True):
            if self.looks and self.judge.decided:  # one look there is also where what was carried decides
                return
            self.taken.append(entry)
            self.looks.append(Look(self.percent, self.opened, len(self.taken), window.end, self.judge.add(window)))

    def looked(self, *, whole: bool, final: bool) -> list[Look]:
        """Every look. `whole`: no more windows were recorded, so that with `final` the last look was the deadline's."""
        if not self.looks:
            return [Look(self.percent, self.opened, 0, None, self.judge.verdict(final=final))]
        if not (whole and final) or self.judge.decided:
            return list(self.looks)
        return [*self.looks[:-1], replace(self.looks[-1], verdict=self.judge.verdict(final=True))]


class Replays:
    """What is kept of replays, so that a step that has grown goes on from where it stood. For a page, which asks every
    few seconds: six hours of a bake are seconds of judging. The looks are those that there are without.

    May be used by several threads: what one of them has under way, another one begins anew. Of more `looks` than are
    wanted the steps are forgotten first that nobody has asked for; the last one is kept, however many it has.
    """

    def __init__(self, looks: int) -> None:
        self._most, self._lock = looks, threading.Lock()
        self._kept: OrderedDict[Hashable, Replay] = OrderedDict()

    def take(self, key: Hashable, began: tuple[Any, ...], recorded: list[Any]) -> Replay | None:
        """What was kept of a step, if it began like this and these windows begin with those that it has taken in."""
        with self._lock:
            one = self._kept.pop(key, None)
        return one if one and one.began == began and one.taken == recorded[: len(one.taken)] else None

    def keep(self, key: Hashable, one: Replay) -> None:
        """Keeps it for whoever asks next, who may be at it at once: it is no longer the caller's."""
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = one
            while len(self._kept) > 1 and sum(len(step.looks) for step in self._kept.values()) > self._most:
                self._kept.popitem(last=False)


def placed(policy: Policy, recorded: Policy) -> Policy:
    """Another policy at a step's place, which must judge metrics that were counted."""
    counted = {m.name for m in recorded.limits}
    for i, metric in enumerate(policy.limits):
        if metric.name not in counted:
            raise EvidenceError(
                f"policy.metrics[{i}].name: {metric.name!r} was not counted; counted are {', '.join(sorted(counted))}"
            )
    by = {m.name: m.slices.by for m in recorded.metrics if m.slices is not None}
    for i, one in enumerate(policy.metrics):
        if one.slices is not None and one.slices.by != by.get(one.name):
            was = f"counted by {by[one.name]}" if one.name in by else "not counted by slices"
            raise EvidenceError(f"policy.metrics[{i}].slices.by: {one.slices.by!r}, and {one.name} was {was}")
    return in_place(policy, recorded)


def in_place(policy: Policy, recorded: Policy) -> Policy:
    """The limits and risks of one policy, with what another says of its step's place in the release."""
    theirs = recorded.to_dict()
    kept = {name: theirs[name] for name in _PLACE if name in theirs}
    return Policy.from_dict({name: said for name, said in policy.to_dict().items() if name not in _PLACE} | kept)


def asked_for(window: Window, policy: Policy) -> Window:
    """The window without the counts of metrics that another policy does not ask for."""
    metrics, values = {m.name: len(m.edges) for m in policy.metrics}, {v.name for v in policy.values}
    shifts = {s.name for s in policy.shifts}
    sliced = {m.name for m in policy.metrics if m.slices is not None}

    def part(side: Side) -> Side:
        return replace(
            side,
            bad={name: bad for name, bad in side.bad.items() if name in metrics},
            # At other edges, or at none, they would be compared with nothing.
            edges={name: slower for name, slower in side.edges.items() if len(slower) == metrics.get(name)},
            totals={name: total for name, total in side.totals.items() if name in metrics},
            labels={name: counts for name, counts in side.labels.items() if name in shifts},
            slices={name: counts for name, counts in side.slices.items() if name in sliced},
        )

    return replace(
        window,
        canary=part(window.canary),
        stable=None if window.stable is None else part(window.stable),
        values={name: sides for name, sides in window.values.items() if name in values},
    )
