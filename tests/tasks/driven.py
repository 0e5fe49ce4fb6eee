"""A canary beside a stable revision on a real API server, and drives of it. The judge's word is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from model_release.cluster import rollout
from model_release.cluster.change import Canary
from model_release.cluster.lease import Lease
from model_release.cluster.progress import State, wait
from model_release.cluster.release import Owner, Phase, Release
from model_release.release.advance import Rules
from model_release.release.drive import Drive
from model_release.spec import ModelSpec
from model_release.tasks import driving
from sandbox.interfaces import Phase as Pod
from sandbox.interfaces import PodState

from .cluster import Kube, wanted

OWNER = Owner("release_digits", "manual__1", "http://airflow/1", "http://airflow")
STABLE, NEW = "digits-predictor-00001", "digits-predictor-00002"


@dataclass
class Said:
    """Stands in for `look.Watch`: the judge says what the test says."""

    judged: str = "continue"
    reason: str = "so far so good"
    trouble: str = ""
    final: bool = False
    no_data: bool = False
    share: int | None = None
    confidence: float | None = None
    extended: bool = False
    looks: int = 0
    windows: list[Any] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.judged not in ("continue", "open")

    def look(self, live: Any, moment: datetime) -> list[str]:
        self.looks += 1
        return []

    def blind(self, error: Exception, moment: datetime) -> list[str]:
        return [f"Not judged: {error}"]


@dataclass
class Scene:
    """A canary that was staged beside a stable revision, with its lease; and drives of it."""

    kube: Kube
    canary: Canary
    rules: Rules
    said: dict[tuple[int | None, bool], Said] = field(default_factory=dict)

    def drive(self, hand: str = "triggerer") -> Drive:
        return Drive(
            canary=self.canary,
            rules=self.rules,
            services=self.kube.services,
            leases=self.kube.leases,
            owner=OWNER,
            watch=lambda some: self.at(some[-1].percent, some[-1].beside_question),
            prove=lambda live: None,
            window=timedelta(seconds=3),
            patience=timedelta(minutes=10),
            hand=hand,
        )

    def at(self, percent: int | None, beside_question: bool = False) -> Said:
        return self.said.setdefault((percent, beside_question), Said())

    @property
    def claim(self) -> Release:
        lease = self.kube.leases.read("models", "digits")
        assert lease is not None
        assert lease.release is not None
        return lease.release

    @property
    def serving(self) -> dict[str, int]:
        return dict(self.kube.live().serving)

    def check_proven_serves(self) -> None:
        """All of the traffic is on the baseline, or on a newer revision of its content: a drive whose looks come late
        sees the first only when the second has taken over."""
        live = self.kube.live()
        assert dict(live.serving) in ({STABLE: 100}, {live.latest_created: 100})
        if live.serving.get(STABLE) != 100:
            assert live.latest_created != NEW
            assert live.template["model"]["storageUri"].endswith("/v1/")


def until(drive: Drive, holds: Callable[[], Any], *, also: Drive | None = None) -> list[str]:
    """Looks until it holds; a test that hangs is ended from outside."""
    lines: list[str] = []
    while not holds():
        lines += drive.look()
        if also is not None and also.done is None:
            also.look()
        if drive.done is not None:
            break
    assert holds()
    return lines


@pytest.fixture
def scene(kube: Kube, spec: ModelSpec) -> Scene:
    def staged(version: str, baseline: rollout.Baseline) -> rollout.Progress:
        rollout.stage(kube.services, wanted(spec, version), baseline)
        progress = wait(lambda: rollout.assess_staged(live(), wanted(spec, version), baseline), 600, poll=0.05)
        assert progress.state is State.READY
        return progress

    def live() -> Any:
        return kube.services.get("models", "digits")

    staged("v1", rollout.Baseline())
    baseline = rollout.baseline_of(live(), wanted(spec, "v2"))
    staged("v2", baseline)
    canary = rollout.canary_of(kube.live(), baseline)
    assert isinstance(kube.leases.acquire("models", "digits", OWNER, "r1"), Lease)
    kube.leases.update(
        "models",
        "digits",
        OWNER,
        lambda now: replace(
            now, phase=Phase.PROVEN, baseline=baseline, canary=canary.revision, template=canary.template
        ),
    )
    return Scene(kube, canary, driving.rules(spec))


def dies(scene: Scene, version: str) -> None:
    """The container of that version ends, and the status says so."""
    scene.kube.pods.phases[version] = PodState(Pod.CRASHED, 0, "boom", 1)
    while scene.kube.live().ready:
        pass
