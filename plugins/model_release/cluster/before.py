"""What the editions before this one wrote into a Lease, in this one's words (`cluster.release`): they had a free text
for the phase, "stage", and no causes. tests/data/leases-before.json has such leases."""

from __future__ import annotations

from typing import Any

# fmt: off
FIELDS = {
    "owner", "release", "stage", "baseline", "canary", "percent", "opened_at", "promoted", "barred", "order",
    "template", "created", "inherited", "spec", "watches", "proven", "closed",
}
# fmt: on
_PHASES = {"claimed": "claimed", "staging": "staged", "staged": "staged", "cleared": "staged"}


def as_of_today(claim: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a claim as that of a release.

    Raises:
        ValueError: no edition before this one wrote it, in one line.
    """
    if unknown := sorted(claim.keys() - FIELDS):
        raise ValueError(f"{unknown[0]!r} is no field of a release; a newer edition may have written it")
    found = dict(claim)
    stage, promoted = str(found.pop("stage", "claimed")), bool(found.pop("promoted", False))
    percent, opened_at = found.pop("percent", None), found.pop("opened_at", None)
    found |= {"record": found.pop("release", ""), "word": found.pop("proven", None)}
    order, watches = found.get("order") or {}, list(found.get("watches") or [])
    if stage.startswith("open at ") and not watches:
        share = percent or int(stage.removeprefix("open at ").removesuffix(" %"))
        watches = [{"percent": share, "opened_at": opened_at}]
    if order.get("kind") == "roll_back" and not found.get("closed"):
        found |= {"closed": f"Rolled back by {order['who']}: {order['why']}", "cause": "person"}
    elif stage.startswith(("rolling back", "rolled back")) and not found.get("closed"):
        found["closed"] = "rolled back; why is in the run's log"
    if found.get("closed"):
        phase = "restored" if stage == "rolled back" else "closing"
    elif promoted:
        phase = "baking" if watches and watches[-1]["percent"] is None else "promoted"
        found["promoted_at"] = opened_at if percent is None else None
    elif stage.startswith("open at "):
        phase = "open"
    elif stage in _PHASES:
        phase, watches = _PHASES[stage], []
    else:
        raise ValueError(f"{stage!r} is no phase of a release; a newer edition may have written it")
    return found | {"phase": phase, "watches": watches}
