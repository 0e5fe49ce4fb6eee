"""A task that somebody marked successful has done nothing: what follows it looks for what it should have left."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from model_release.cluster.change import Baseline
from model_release.cluster.release import Owner, Phase, Release
from model_release.errors import CanaryLost
from model_release.spec import ModelSpec
from model_release.tasks import service
from model_release.tasks.serve import GoDirect, GoLive, Promote

R1, R2 = "digits-predictor-00001", "digits-predictor-00002"
OWNER = Owner("release_digits", "manual__1", "http://airflow/1", "http://airflow")
STAGED = Release(OWNER, phase=Phase.STAGED, baseline=Baseline("1", R1), canary=R2)
PROVEN = replace(STAGED, phase=Phase.PROVEN)
FIRST = replace(STAGED, baseline=Baseline(), canary=R1)


def asked(rollout: str) -> Any:
    return SimpleNamespace(rollout=rollout, who="anna", params={"note": "it was live"})


@pytest.mark.parametrize("phase", [Phase.CLAIMED, Phase.STAGED])
def test_a_revision_that_answered_no_smoke_prediction_gets_no_traffic(phase: Phase) -> None:
    with pytest.raises(CanaryLost, match=f"task smoke did not ask {R2}"):
        service.check_answered(replace(STAGED, phase=phase))
    service.check_answered(PROVEN)


def test_a_canary_never_goes_live_by_the_way_of_a_first_deployment(spec: ModelSpec) -> None:
    task = GoLive(task_id="go_live", spec=spec)
    with pytest.raises(CanaryLost, match=f"{R2} stands beside a stable revision"):
        task.word(PROVEN, asked("canary"))
    with pytest.raises(CanaryLost, match=f"task smoke did not ask {R1}"):
        task.word(FIRST, asked("canary"))
    assert task.word(replace(FIRST, phase=Phase.PROVEN), asked("canary")).startswith("live at 100 %")


def test_nothing_goes_live_at_once_that_nobody_asked_for_or_asked(spec: ModelSpec) -> None:
    task = GoDirect(task_id="go_direct", spec=spec)
    with pytest.raises(CanaryLost, match=f"nobody asked for {R2} to go live without a canary"):
        task.word(PROVEN, asked("canary"))
    with pytest.raises(CanaryLost, match=f"task smoke did not ask {R2}"):
        task.word(STAGED, asked("direct"))
    assert task.word(PROVEN, asked("direct")) == "all traffic at once, without a canary, as anna asked: it was live"


@pytest.mark.parametrize("phase", [Phase.PROVEN, Phase.OPEN])
def test_nothing_is_promoted_on_nobodys_word(spec: ModelSpec, phase: Phase) -> None:
    with pytest.raises(CanaryLost, match="nothing is promoted unproven"):
        Promote(task_id="promote", spec=spec).word(replace(STAGED, phase=phase), asked("canary"))
