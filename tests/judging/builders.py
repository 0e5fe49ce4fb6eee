"""Short ways to write policies and windows in these tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from model_release.judging import Policy, Window

START = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def policy(**fields: Any) -> Policy:
    """One metric, `errors`, unless `metrics` says otherwise; limits may be given at the top."""
    limits = {k: fields.pop(k) for k in ("max_rate", "max_ratio", "floor") if k in fields}
    return Policy.from_dict({"metrics": [{"name": "errors", **limits}], **fields})


def window(
    canary: tuple[int | None, int | None],
    stable: tuple[int | None, int | None] | None = None,
    *,
    at: int | None = None,
    seconds: int = 10,
    name: str = "errors",
    **more: Any,
) -> Window:
    """(requests, bad) of each side; `at` is the window's place in a run of equal windows."""

    def side(pair: tuple[int | None, int | None]) -> dict[str, Any]:
        return {"requests": pair[0], "bad": {name: pair[1]}}

    data: dict[str, Any] = {"canary": side(canary), "stable": None if stable is None else side(stable), **more}
    if at is not None:
        data["start"] = (START + timedelta(seconds=at * seconds)).isoformat()
        data["end"] = (START + timedelta(seconds=(at + 1) * seconds)).isoformat()
    return Window.from_dict(data)


def windows(counts: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> list[Window]:
    return [window(canary, stable, at=i) for i, (canary, stable) in enumerate(counts)]
