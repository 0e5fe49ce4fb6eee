"""The canary's sensor without a cluster: the release that it finds, what the drive hands over, a person's answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time import hitl

from model_release.cluster.change import Baseline
from model_release.cluster.release import Cause, Owner, Phase, Release, Watched
from model_release.judging import Policy
from model_release.judging.record import Record
from model_release.release.advance import Done
from model_release.spec import ModelSpec
from model_release.tasks import canary, driving, links, records
from model_release.tasks.canary import CanarySensor

CANARY = {
    "namespace": "models",
    "name": "digits",
    "uid": "1",
    "revision": "digits-00002",
    "baseline": "digits-00001",
    "template": "0123456789abcdef",
}
OPENED = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
OWNER = Owner("release_digits", "manual__1", "http://airflow/1", "http://airflow")
OPEN = Release(
    OWNER,
    phase=Phase.OPEN,
    namespace="models",
    name="digits",
    baseline=Baseline("1", "digits-00001"),
    canary="digits-00002",
    template="0123456789abcdef",
    watches=(Watched(50, OPENED.isoformat()),),
)
PROMOTED = replace(OPEN, phase=Phase.PROMOTED, word="0 of 300", promoted_at=OPENED.isoformat())


@dataclass
class World:
    """The lease and the record of this run, what was asked of people, and what the drive in the worker is told."""

    claim: Release = OPEN
    record: Record = field(
        default_factory=lambda: Record.new(
            "r", model="digits", service="models/digits", version=None, started=OPENED.isoformat()
        )
    )
    asked: list[dict[str, Any]] = field(default_factory=list)
    turned: str | None = None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, ti: Any) -> World:
    seen = World()

    class Service:
        """Stands in for `ReleasedService`."""

        def __init__(self, spec: ModelSpec, run: Any) -> None: ...

        def claim(self) -> Release:
            seen.claim.check_goes_on()
            return seen.claim

        def resumed(self) -> Release:
            seen.claim = replace(self.claim(), trouble=None)
            return seen.claim

        def held(self) -> Release:
            return seen.claim

        def canary(self) -> Any:
            return self.claim().as_canary

        def note_by(self, edit: Any, *, going_back: bool = False) -> Release:
            seen.claim = edit(self.held() if going_back else self.claim())
            return seen.claim

        def claimed(self) -> datetime:
            return OPENED

        def record(self, edit: Any) -> None:
            edit(seen.record)

    class Drive:
        """Stands in for the drive in the worker that heard an answer: it does at once what it is told."""

        pause = 0.0
        watches: dict[Any, Any]
        moved: list[Any]

        def __init__(self, *_: Any) -> None:
            self.canary, self.watches, self.moved, self.done = canary_of(), {}, [], None

        def look(self) -> list[str]:
            if seen.turned:
                self.close(seen.turned)
            if seen.claim.closed:
                self.done = Done("rollback", seen.claim.closed)
            elif seen.claim.promoted:
                self.done = Done("promote", seen.claim.word or "")
            return ["looked"]

        def close(self, why: str, cause: Cause = Cause.EVIDENCE) -> None:
            seen.claim = seen.claim.close(why, cause)

    def canary_of() -> Any:
        from model_release.cluster.change import Canary

        return Canary.from_dict(CANARY)

    monkeypatch.setattr(canary, "ReleasedService", Service)
    monkeypatch.setattr(driving, "drive", Drive)
    monkeypatch.setattr(records, "change", lambda spec, run, edit, store=None: edit(seen.record))
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **said: seen.asked.append(said))
    monkeypatch.setattr(links, "push_for", lambda *_: None)
    ti.task_id = "canary"
    return seen


def window(number: int, bad: int, *, alone: bool = False) -> dict[str, Any]:
    start = OPENED + timedelta(seconds=3 * number)
    stable = None if alone else {"requests": 300, "bad": {"errors": 0}}
    counted = {"requests": 100, "bad": {"errors": bad}}
    end = start + timedelta(seconds=3)
    return {"start": start.isoformat(), "end": end.isoformat(), "canary": counted, "stable": stable}


def event(spec: ModelSpec, decision: str, *, bad: int = 0, percent: int | None = 50, reason: str = "…") -> Any:
    """What the drive hands over, with the counts of one stretch."""
    step = {
        "percent": percent,
        "opened": OPENED.isoformat(),
        "policy": Policy.from_dict(spec.policy(percent)).to_dict(),
        "windows": [window(number, bad, alone=percent is None) for number in range(4)],
        "final": decision in ("inconclusive", "baked"),
    }
    move = {
        "time": OPENED.isoformat(),
        "change": f"open_{percent}",
        "percent": percent or 100,
        "revisions": {"digits-00002": percent or 100},
    }
    return {
        "decision": decision,
        "reason": reason,
        "revision": "digits-00002",
        "steps": [step],
        "moved": [move],
    }


def deferred(call: Any, *words: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        call(*words)
    return raised.value


def sensor(spec: ModelSpec, approval: str = "never") -> CanarySensor:
    return CanarySensor(task_id="canary", spec=spec.model_copy(update={"approval": approval}))


def answer(chosen: str, reason: str = "") -> dict[str, Any]:
    who = {"id": "7", "name": "ada"}
    return {"chosen_options": [chosen], "params_input": {"reason": reason}, "responded_by_user": who}
