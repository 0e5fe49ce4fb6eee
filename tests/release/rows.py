"""One row for each thing that may happen to a canary, and what must come next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from model_release.cluster.release import Cause, Phase, Release, Watched
from model_release.release.advance import (
    Action,
    Opened,
    Rules,
    World,
    advance,
    bake,
)

from .builders import CANARY, NOW, SINCE, live, opened

RULES = Rules((10, 30))
RAMP = Rules((), ramp_from=2)
ASKS = replace(RULES, asks="before_promote", answer_within="4h")
UNSURE = replace(RULES, asks="on_inconclusive", answer_within="4h")
TEN = Watched(10, SINCE, NOW)
PROMOTING = replace(opened(30, TEN), phase=Phase.PROMOTED, word="0 of 300")
CLOSED = opened(30, TEN).close("9 of 30", Cause.EVIDENCE)
BAKING = bake(replace(PROMOTING, promoted_at=SINCE))
DEAD = "m-00002 is dead: Container failed with: OutOfMemory."


@dataclass(frozen=True)
class Row:
    """One thing that may happen. `recorded` names what must stand in the release afterwards."""

    release: Release
    world: World
    action: Action
    rules: Rules = RULES
    recorded: tuple[tuple[str, object], ...] = ()


def world(percent: int | None = 30, gateway: int | None = None, **more: object) -> World:
    return World(live(percent, gateway=gateway), NOW, **more)


def seen(metadata: dict[str, Any] | int | None = 30, *, prev: str = "m-00001", silent: bool = False) -> World:
    """The service at this share, or with this metadata; KServe sends the rest to `prev`; a gateway that is silent has
    not said that it has the split."""
    found = live(30 if isinstance(metadata, dict) else metadata)
    if isinstance(metadata, dict):
        found.raw["metadata"] |= metadata
    status = found.raw["status"]
    for target in status["components"]["predictor"]["traffic"]:
        if target.get("tag") == "prev":
            target["revisionName"] = prev
    if silent:
        status["conditions"] = [{"type": "PredictorRouteReady", "status": "Unknown"}, *status["conditions"][:1]]
    return World(found, NOW)


def closed(why: str, cause: Cause) -> tuple[tuple[str, object], ...]:
    return (("closed", why), ("cause", cause), ("promoted", False), ("phase", Phase.CLOSING))


def check(row: Row) -> None:
    """What comes next is what the row says; and asked again, there is nothing new to record."""
    release, action = advance(row.release, CANARY, row.world, row.rules)
    assert action == row.action
    for field, value in row.recorded:
        assert getattr(release, field) == value, field
    again, same = advance(release, CANARY, row.world, row.rules)
    assert again == release, "asked again, there is nothing new to record"
    if row.world.live is not None and not isinstance(action, Opened):
        assert same == action
