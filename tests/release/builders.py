"""Services, releases and windows as short words, for tests without a cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from model_release.cluster.change import Baseline, Canary
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.release import Order, Owner, Phase, Release, Watched
from model_release.judging import Window

OPENED = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
SECONDS = 10
NOW = "2026-03-01T02:30:00.000+00:00"
SINCE = OPENED.isoformat()
OWNER = Owner("release_m", "manual__1", "http://airflow/1", "http://airflow")
STABLE = {"model": {"storageUri": "s3://models/m/1/"}}


def at(seconds: float) -> datetime:
    return OPENED + timedelta(seconds=seconds)


def window(number: int, bad: int | None = 0, requests: int | None = 100, *, alone: bool = False) -> Window:
    stable = None if alone else {"requests": 300, "bad": {"errors": 0}}
    return Window.from_dict(
        {
            "start": at(SECONDS * (number - 1)).isoformat(),
            "end": at(SECONDS * number).isoformat(),
            "canary": {"requests": requests, "bad": {"errors": bad}},
            "stable": stable,
        }
    )


def live(
    percent: int | None = 30,
    *,
    gateway: int | None = None,
    uid: str = "1",
    revision: str = "m-00002",
    dead: str = "",
    **predictor: Any,
) -> InferenceService:
    """The service as the release opened it: the spec at `percent` (None: promoted), the gateway at `gateway`, which
    is the same unless said. `dead` names a revision that is not ready any more (tests/data/real: crash)."""
    split = {} if percent is None else {"canaryTrafficPercent": percent}
    share = gateway if gateway is not None else 100 if percent is None else percent
    traffic = [{"revisionName": revision, "percent": share, "latestRevision": True}]
    if share < 100:
        traffic.append({"revisionName": "m-00001", "percent": 100 - share, "tag": "prev"})
    components: dict[str, Any] = {
        "latestCreatedRevision": revision,
        "latestReadyRevision": revision,
        "latestRolledoutRevision": revision if percent is None and share == 100 else "m-00001",
        "traffic": traffic,
    }
    return InferenceService(
        {
            "metadata": {"name": "m", "namespace": "models", "uid": uid, "resourceVersion": "1", "generation": 3},
            "spec": {"predictor": {"model": {"storageUri": "s3://models/m/2/"}, **predictor, **split}},
            "status": {
                "observedGeneration": 3,
                "conditions": _conditions(dead),
                "components": {"predictor": components},
            },
        }
    )


def _conditions(dead: str) -> list[dict[str, str]]:
    if not dead:
        return [{"type": "Ready", "status": "True"}, {"type": "PredictorRouteReady", "status": "True"}]
    route = {"status": "False", "reason": "RevisionMissing", "message": f'Revision "{dead}" failed to become ready.'}
    words = f'Revision "{dead}" failed with message: Container failed with: OutOfMemory.'
    return [
        {"type": "Ready", **route},
        {"type": "PredictorRouteReady", **route},
        {"type": "PredictorConfigurationReady", "status": "False", "reason": "RevisionFailed", "message": words},
    ]


CANARY = Canary("models", "m", "1", "m-00002", "m-00001", live().template_digest)
BASELINE = Baseline(uid="1", revision="m-00001", template=STABLE, storage_uri="s3://models/m/1/", created="m-00001")
STAGED = Release(
    OWNER,
    record="m-1",
    phase=Phase.PROVEN,
    namespace="models",
    name="m",
    baseline=BASELINE,
    canary="m-00002",
    template=CANARY.template,
)


def opened(percent: int = 30, *over: Watched, **stretch: Any) -> Release:
    """The release of a canary that is open at `percent`, after the stretches that are `over`."""
    under_way = Watched(percent, **{"opened_at": SINCE, **stretch})
    return replace(STAGED, phase=Phase.OPEN, watches=(*over, under_way))


def order(kind: Any, revision: str | None = "m-00002") -> Order:
    return Order(kind, "anna", "because", NOW, revision)
