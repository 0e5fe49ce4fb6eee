"""Model files, InferenceServices, leases, records and lines as they come from the real parts, made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from model_release.cluster.change import Baseline
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.lease import FROZEN, GUARD, GUARD_SECONDS, LEASE_SECONDS, LOOKED_BY, RELEASE, Lease
from model_release.cluster.release import Owner, Phase, Release, Watched
from model_release.judging import Judge, Policy, Side, Window
from model_release.judging.pairs import Answer, Pairs
from model_release.judging.record import Record
from model_release.metrics.prometheus import Series
from model_release.spec import ModelSpec

NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
VERSIONS = ["3f2a9c0d11e4b587", "a81c44d0927be355", "0c77e0f1d2b3a495", "77aa10e2c4d5b6f8"]
LABELS = ["angry", "happy", "neutral", "sad", "surprised"]


PLAN = {
    "sentences": [
        "stable: 0.31 % errors, bursts of 2.4; 1 % slow, bursts of 1, from 720 windows",
        "At 20 requests a second and 10 and 30 % of them a good canary needs about 14 min.",
        "97.5 % of good canaries are promoted by the deadline of 30 min; errors take longest.",
    ],
    "metrics": [
        {"name": "errors", "stable_rate": 0.0031, "burst": 2.4, "known": True, "limit": 0.0075, "worse": 2.0,
         "minutes_found": None, "found_in_time": 0.1, "smallest": 0.028},
        {"name": "slow", "stable_rate": 0.01, "burst": 1.0, "known": True, "limit": 0.05, "worse": 2.0,
         "minutes_found": 6.5, "found_in_time": 0.8, "smallest": None},
    ],
}  # fmt: skip


def spec(model: str, *, service: str | None = None, store: str | None = None, namespace: str = "models") -> ModelSpec:
    """A model file, as short as may be."""
    return ModelSpec.model_validate(
        {
            "model": model,
            "source": {"directory": f"candidates/{model}"},
            "service": {"name": service or model, "namespace": namespace},
            "store": store or f"s3://models/{model}/",
            "rollout": {"steps": [10, 30], "window": "10s", "deadline": "30m", "bake": "1m"},
            "judge": {
                "profile": "istio",
                "metrics": [
                    {"name": "errors", "max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005},
                    {"name": "slow", "above": "500ms", "max_rate": 0.05},
                ],
            },
        }
    )


def at(minutes: float, start: datetime = NOW) -> str:
    return (start + timedelta(minutes=minutes)).isoformat(timespec="milliseconds")


def uri(model: str, version: str) -> str:
    return f"s3://models/{model}/versions/{version}/"


def service_of(
    model: str, split: dict[int, int], *, version: str = VERSIONS[1], ready: bool = True, namespace: str = "models"
) -> InferenceService:
    """An InferenceService whose revisions (by number) have these percents; two of them are a canary's split."""
    numbers = sorted(split)
    stable, newest = numbers[0], numbers[-1]
    names = {number: f"{model}-predictor-{number:05d}" for number in numbers}
    traffic = [
        {"revisionName": names[number], "percent": split[number], "latestRevision": number == newest}
        | ({"tag": "prev"} if number == stable and len(numbers) > 1 else {})
        for number in numbers
    ]
    predictor: dict[str, Any] = {"model": {"storageUri": uri(model, version)}}
    if len(numbers) > 1:
        predictor["canaryTrafficPercent"] = split[newest]
    return InferenceService(
        {
            "metadata": {"name": model, "namespace": namespace, "uid": model, "resourceVersion": "1"},
            "spec": {"predictor": predictor},
            "status": {
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
                "components": {
                    "predictor": {
                        "latestCreatedRevision": names[newest],
                        "latestReadyRevision": names[newest],
                        "latestRolledoutRevision": names[stable],
                        "traffic": traffic,
                    }
                },
            },
        }
    )


def lease_of(model: str, claim: Release | None = None, frozen: str | None = None, namespace: str = "models") -> Lease:
    annotations = {}
    if claim is not None:
        annotations[RELEASE] = json.dumps(claim.as_dict())
        annotations[LOOKED_BY] = "triggerer"
    if frozen is not None:
        annotations[FROZEN] = frozen
    beat = {"renewTime": at(-0.1), "leaseDurationSeconds": LEASE_SECONDS}
    return Lease(
        {
            "metadata": {"name": f"model-release-{model}", "namespace": namespace, "annotations": annotations},
            "spec": {"holderIdentity": claim.owner.identity, "acquireTime": at(-4), **beat} if claim else {},
        }
    )


def guard_of(seconds_ago: float, namespace: str = "models") -> Lease:
    """The guard's own lease, as it was renewed so many seconds ago by this machine's clock."""
    when = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()
    spec = {"holderIdentity": "guard", "renewTime": when, "leaseDurationSeconds": GUARD_SECONDS}
    return Lease({"metadata": {"name": GUARD, "namespace": namespace}, "spec": spec})


def claim_of(model: str, release: str, percent: int) -> Release:
    owner = Owner(f"release_{model}", "manual__1", "http://airflow.test/dags/x/runs/y", "http://airflow.test")
    return Release(
        owner=owner,
        record=release,
        phase=Phase.OPEN,
        watches=(Watched(percent, at(-3)),),
        canary=f"{model}-predictor-00002",
        baseline=Baseline(revision=f"{model}-predictor-00001", storage_uri=uri(model, VERSIONS[0])),
    )


def windows_of(percent: int, rate: float, start: datetime, many: int, seed: int = 3) -> list[Window]:
    rng = np.random.default_rng(seed + percent)
    made = []
    for i in range(many):
        begin = start + timedelta(seconds=10 * i)
        n, m = int(rng.poisson(12 * percent)), int(rng.poisson(12 * (100 - percent)))
        made.append(
            Window(
                canary=Side(n, {"errors": int(rng.binomial(n, rate)), "slow": int(rng.binomial(n, 0.01))}),
                stable=Side(m, {"errors": int(rng.binomial(m, 0.002)), "slow": int(rng.binomial(m, 0.01))}),
                start=begin.isoformat(timespec="milliseconds"),
                end=(begin + timedelta(seconds=10)).isoformat(timespec="milliseconds"),
            )
        )
    return made


def record_of(
    one: ModelSpec,
    *,
    outcome: str | None = "promoted",
    started: datetime = NOW,
    rate: float = 0.002,
    reason: str | None = None,
    number: int = 0,
    evaluated: bool = False,
    looks: int = 60,
) -> Record:
    """A release of `one` as its tasks would have recorded it; `rate` is the canary's share of errors."""
    model, before, after = one.model, VERSIONS[number % 4], VERSIONS[(number + 1) % 4]
    stable, canary = f"{model}-predictor-{number + 1:05d}", f"{model}-predictor-{number + 2:05d}"
    record = Record.new(
        f"{model}-{started:%Y%m%dT%H%M%S}-{number:08x}",
        model=model,
        service=one.service.key,
        version=after,
        started=started.isoformat(timespec="milliseconds"),
        baseline={"revision": stable, "storage_uri": uri(model, before)},
        canary={"revision": canary},
        run={
            "dag_id": f"release_{model}",
            "run_id": f"manual__{number}",
            "url": f"http://airflow.test/dags/release_{model}/runs/manual__{number}",
            "note": None,
        },
        plan=PLAN,
    )
    moment = started + timedelta(minutes=1)
    record.record_traffic(moment.isoformat(), "stage", 0, {stable: 100})
    said = ""
    for percent in one.rollout.steps:
        moment += timedelta(seconds=20)
        opened = moment.isoformat(timespec="milliseconds")
        record.record_traffic(opened, f"open_{percent}", percent, {stable: 100 - percent, canary: percent})
        policy, seen = Policy.from_dict(one.policy(percent)), []
        judge = Judge(policy)
        for window in windows_of(percent, rate, moment, looks):
            seen.append(window)
            judge.add(window)
            if judge.decided:
                break
        moment += timedelta(seconds=10 * len(seen) + 3)
        final = outcome == "inconclusive" and not judge.decided
        verdict = judge.verdict(final=final)
        record.record_step(
            percent, opened, window_seconds=10, policy=policy, windows=seen, final=final, verdict=verdict
        )
        said = verdict.reason
        if verdict.decision != "promote":
            break
    if evaluated:
        record.evaluation = evaluation(before, after)
        record.shadow = shadow((started + timedelta(seconds=50)).isoformat(timespec="milliseconds"))
    if outcome is not None:
        task, percent, shares = ("roll_back", 0, {stable: 100})
        if outcome == "promoted":
            task, percent, shares = "promote", 100, {canary: 100}
        record.record_traffic(moment.isoformat(timespec="milliseconds"), task, percent, shares)
        settled = moment + timedelta(seconds=3)
        record.record_traffic(settled.isoformat(timespec="milliseconds"), "settle", percent, shares)
        record.finish(outcome, said if reason is None else reason, (moment + timedelta(seconds=5)).isoformat())
    return record


def shadow(time: str, limit: float | None = 0.05) -> dict[str, Any]:
    """What the pictures before any traffic came to: 6 of 500 changed, one kind of them most."""
    pairs = Pairs(500, limit)
    for number in range(500):
        stable = Answer({"angry": 0.9, "sad": 0.1}, 0.02)
        other = Answer({"sad": 0.8, "angry": 0.2}, 0.03) if number < 5 else Answer({}, fault="failed")
        pairs.add("phone" if number < 20 else "scan", stable, other if number < 6 else stable)
    return {"time": time, "from": "s3://models/samples/faces/", "passed": True, **pairs.to_dict()}


def sliced(by: str, part: str, images: int, worse: int, lower: float, upper: float) -> dict[str, Any]:
    row = {"by": by, "slice": part, "images": images, "accuracy": 0.91, "before": 0.86}
    return {**row, "regressions": worse, "lower": lower, "upper": upper}


def evaluation(before: str, after: str) -> dict[str, Any]:
    rng = np.random.default_rng(5)

    def side(version: str, right: float) -> dict[str, Any]:
        confusion = [[0] * 5 for _ in LABELS]
        for true in range(5):
            for _ in range(80):
                confusion[true][true if rng.random() < right else int(rng.integers(5))] += 1
        recall = {label: confusion[i][i] / 80 for i, label in enumerate(LABELS)}
        return {
            "version": version,
            "accuracy": sum(confusion[i][i] for i in range(5)) / 400,
            "recall": recall,
            "support": dict.fromkeys(LABELS, 80),
            "confusion": confusion,
            "labels": LABELS,
            "calibration": {"ece": 0.031, "bins": []},
        }

    return {
        "data": {"uri": "s3://models/eval/faces/", "digest": "ab" * 32, "images": 400},
        "candidate": side(after, 0.91),
        "stable": side(before, 0.86),
        "comparison": {
            "skipped": None,
            "mcnemar": {"worse": 9, "better": 26, "p": 0.006},
            "negative_flips": {
                "count": 2,
                "share": 0.005,
                "images": [
                    {"name": "sad/0012.png", "label": "sad", "was": "sad", "is": "neutral"},
                    {"name": "angry/0044.png", "label": "angry", "was": "angry", "is": "surprised"},
                ],
            },
            "churn": 0.0875,
        },
        "slices": [
            sliced("country", "fr", 120, 9, 0.0397, 0.1273),
            sliced("country", "none", 280, 0, 0.0, 0.0106),
            {"by": "folder", "slice": "phone", "images": 400, "accuracy": 0.91},
        ],
        "gates": [
            {
                "name": "min_accuracy",
                "limit": 0.8,
                "value": 0.91,
                "passed": True,
                "sentence": "Accuracy 91 %, at least 80 %.",
            },
            {
                "name": "max_regressions",
                "limit": 0.01,
                "value": None,
                "passed": None,
                "sentence": "Regressions (at most 1 %) were not counted: the labels differ.",
            },
        ],
        "passed": True,
    }


def busy_lines(model: str, revisions: dict[str, tuple[float, float, float]]) -> Callable[[str, datetime], list[Series]]:
    """Lines for revisions: (requests a second, share of errors, p50 in ms), on whatever grid is asked for."""

    def answer(promql: str, moment: datetime) -> list[Series]:
        inside = promql.rsplit("[", 1)[1].removesuffix("]")
        span, step = (int(part.removesuffix("s")) for part in inside.split(":"))
        end = int(moment.timestamp())
        times = list(range(end - span + step, end + 1, step))
        made = []
        for place, (revision, (rate, bad, p50)) in enumerate(revisions.items()):
            labels = {"destination_workload": f"{revision}-deployment"}
            rng = np.random.default_rng(place)
            wave = [1 + 0.12 * np.sin(t / 220) + 0.05 * rng.standard_normal() for t in times]
            if "histogram_quantile" in promql:
                for name, factor in (("p50", 1.0), ("p95", 2.4), ("p99", 4.1)):
                    values = [(t * 1000, p50 * factor * w) for t, w in zip(times, wave, strict=True)]
                    made.append(Series(labels | {"quantile": name}, values))
            else:
                for code, part in (("200", 1 - bad), ("503", bad)):
                    values = [(t * 1000, rate * part * w) for t, w in zip(times, wave, strict=True)]
                    made.append(Series(labels | {"response_code": code}, values))
        return made

    return answer
