"""What a person does by hand, and a canary that is open for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.patience import LIMIT

from model_release.cluster.release import Order, Owner, Phase, Release, Watched
from model_release.release.emergency import ByHand, Person, promote_anyway, roll_back_now

R1, R2, R3 = (f"digits-predictor-0000{n}" for n in (1, 2, 3))


def person(reason: str = "because") -> Person:
    return Person("anna", reason, Owner("rollback_digits", "by-hand-1", "http://airflow/1", "laptop"))


def roll_back(
    live: Any, prove: Any = None, reason: str = "because", seconds: float = LIMIT, to: str | None = None
) -> ByHand:
    return roll_back_now(
        live.services,
        live.leases,
        "models",
        "digits",
        person(reason),
        seconds=seconds,
        tell=lambda _: None,
        prove=prove,
        to=to,
    )


def promote(live: Any, seconds: float = 2, reason: str = "because") -> str:
    return promote_anyway(
        live.services, live.leases, "models", "digits", person(reason),
        seconds=seconds, tell=lambda _: None,
    )  # fmt: skip


def opened(live: Any, percent: int = 30, facts: dict[str, Any] | None = None) -> tuple[Owner, Any]:
    """v1 is stable, and a run that is alive has v2 open."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, percent)
    owner = live.owner("run-1")
    live.leases.acquire("models", "digits", owner)
    said = {"baseline": baseline, "canary": canary.revision, "template": canary.template, "started": canary.started}
    said |= {"phase": Phase.OPEN, "watches": (Watched(percent, "2026-03-01T02:00:00.000+00:00"),)}
    live.leases.update("models", "digits", owner, lambda now: replace(now, **{**said, **(facts or {})}))
    return owner, canary


def order_of(live: Any) -> Order | None:
    claim: Release = live.leases.read("models", "digits").release
    return claim.order
