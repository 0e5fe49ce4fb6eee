"""A release whose shares are chosen as the evidence allows, from the first share to its end: the lease, the watch and
`advance` together, on traffic that is made up, without a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest
from tests.release.builders import CANARY as RELEASED
from tests.release.builders import STAGED, live

from model_release.cluster.release import Cause, Release
from model_release.judging import Past
from model_release.release.advance import Look, Promote, Shift, TakeBack, World, advance
from model_release.release.look import Watch
from model_release.spec import ModelSpec
from model_release.tasks import driving

from .sensed import OPENED
from .test_carried import STEP, Traffic, traffic, watches

__all__ = ["traffic"]


def test_a_ramp_begins_where_a_wholly_bad_canary_hurts_no_more_than_its_budget(spec: ModelSpec) -> None:
    ramp = ModelSpec.model_validate(
        {**spec.model_dump(mode="json"), "rollout": {"ramp": {"budget": 20, "most": 35}, "window": "10s"}}
    )

    def past(per_window: int) -> Past:
        return Past.from_dict({"windows": [{"requests": per_window, "bad": {}}] * 9})

    # Gone in three windows: 20 requests are 3.3 % of 600, and a third of the 60 that come.
    firsts = [driving.rules(ramp, before).first for before in (past(200), past(20), past(10**6), Past(()), None)]
    assert firsts == [2, 20, 1, 1, 1]
    quiet = Past.from_dict({"windows": [{"requests": n, "bad": {}} for n in (20,) * 400 + (200,) * 100]})
    assert driving.rules(ramp, quiet).first == 2, "by its busy windows, of which it was no canary itself"
    assert driving.rules(spec, past(200)).first == 25


@dataclass
class Ramped:
    """A whole release by a ramp, a tick of three seconds after the other. The hand is made anew before `killed`."""

    spec: ModelSpec
    traffic: Traffic
    killed: frozenset[int]
    release: Release = STAGED
    percent: int = 0
    watch: Watch | None = None
    said: list[Any] = field(default_factory=list)

    def run(self) -> Ramped:
        made, rules = watches(self.spec), driving.rules(self.spec)
        for tick in range(400):
            moment = OPENED + tick * STEP
            if tick in self.killed:
                made, self.watch = watches(self.spec), None
            action: Any = None
            for _ in range(3):  # what is asked for is there at the next look
                action = self._look(made, rules, moment)
                match action:
                    case Shift(percent):
                        self.percent = percent
                        self.traffic.shares.append((moment, percent / 100))
                    case Promote() | TakeBack():
                        return self
                    case Look():
                        break
        return self

    def _look(self, made: driving.Watches, rules: Any, moment: datetime) -> Any:
        under_way = self.release.watches[-1] if self.release.watches else None
        if under_way is None or under_way.opened_at is None:
            self.watch = None
        elif self.watch is None or self.watch.stretch.key != under_way.opened_at:
            self.watch = made(self.release.watches)
        world = World(live(self.percent), moment.isoformat(timespec="milliseconds"))
        if self.watch is not None:
            self.said += self.watch.look(None, moment)
            one = self.watch
            world = replace(world, judged=one.judged, reason=one.reason, share=one.share, windows=len(one.windows))
        self.release, action = advance(self.release, RELEASED, world, rules)
        return action


@pytest.mark.parametrize("bad_from", [None, 3, 9])
@pytest.mark.parametrize("killed", [range(400), range(0, 400, 7), (9,), (14,), (23,)], ids=str)
def test_a_ramp_ends_the_same_however_often_the_hand_is_made_anew(
    spec: ModelSpec, traffic: Traffic, killed: Any, bad_from: int | None
) -> None:
    ramp = ModelSpec.model_validate(
        {**spec.model_dump(mode="json"), "rollout": {"ramp": {"budget": 60, "most": 35}, "window": "3s"}}
    )
    if bad_from is not None:
        traffic.bad_from = OPENED + bad_from * STEP
    traffic.total, ends = 400, []
    for each in (frozenset[int](), frozenset(killed)):
        traffic.shares = []
        ends.append(Ramped(ramp, traffic, each).run())
    calm, restless = ends
    assert calm.watch is not None
    assert restless.watch is not None
    assert restless.release == calm.release
    assert restless.watch.verdict == calm.watch.verdict
    shares = [one.percent for one in calm.release.watches]
    assert shares == sorted(shares)  # type: ignore[type-var]
    if bad_from is None:
        assert (calm.release.promoted, shares[0], shares[-1]) == (True, 1, 35)
    else:
        assert calm.release.cause is Cause.EVIDENCE
