"""Releases to be counted: one promoted, one rolled back, with the judge's own verdicts, and a canary being watched."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from model_release.judging import Judge, Policy, Side, Window, judge
from model_release.judging.record import Record

START = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
POLICY = Policy.from_dict(
    {"metrics": [{"name": "errors", "max_rate": 0.03}, {"name": "slow", "max_rate": 0.5, "observe": True}]}
)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def windows(opened: float, bad: int, count: int) -> list[Window]:
    """Windows of ten seconds and 50 requests each."""
    return [
        Window(
            Side(50, {"errors": bad, "slow": 0}),
            Side(500, {"errors": 5, "slow": 0}),
            at(opened + 10 * n),
            at(opened + 10 * n + 10),
        )
        for n in range(count)
    ]


def record(name: str, *, bad: int, outcome: str) -> Record:
    """Built for 60 s, smoke test 5 s, one step from 65 s on; then 2 s of bake or settling, and 1 s for the rest."""
    made = Record.new(name, model="digits", service="models/digits", version=f"v-{name}", started=at(0))
    made.record_traffic(at(60), "stage", 0, {})
    made.record_traffic(at(65), "open_25", 25, {})
    counted = windows(65, bad, 30)
    verdict = judge(POLICY, counted)
    used = counted[: verdict.windows_used]
    made.record_step(
        25, at(65), window_seconds=10, policy=POLICY, windows=used, final=False, verdict=judge(POLICY, used)
    )
    end = 65 + 10 * verdict.windows_used
    made.record_traffic(at(end), "promote" if outcome == "promoted" else "roll_back", 100, {})
    made.record_traffic(at(end + 2), "settle", 100, {})
    made.finish(outcome, verdict.reason, at(end + 3))
    return made


def watch(percent: int | None = 25, looks: int = 3) -> Any:
    """What `telemetry.looked` reads of a `look.Watch`."""
    one = Judge(POLICY)
    one.extend(windows(65, 0, looks))
    canary = SimpleNamespace(namespace="models", name="digits", revision="digits-predictor-00002")
    return SimpleNamespace(canary=canary, percent=percent, judge=one)
