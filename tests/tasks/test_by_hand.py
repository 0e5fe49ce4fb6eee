"""A task that somebody marked successful has done nothing: what follows it looks for what it should have left."""

from __future__ import annotations

from typing import Any

import pytest

from model_release.errors import CanaryLost
from model_release.spec import ModelSpec
from model_release.tasks import service
from model_release.tasks.serve import GoLive

R1, R2 = "digits-predictor-00001", "digits-predictor-00002"


def left(ti: Any, kind: str, answered: str | None) -> None:
    ti.xcoms["stage", "return_value"] = {"kind": kind, "sentence": "…", "canary": {}}
    if answered:
        ti.xcoms["smoke", service.ANSWERED] = answered


@pytest.mark.parametrize("answered", [None, R1])
def test_a_revision_that_answered_no_smoke_prediction_gets_no_traffic(
    context: Any, ti: Any, answered: str | None
) -> None:
    left(ti, "canary", answered)
    with pytest.raises(CanaryLost, match=f"task smoke did not ask {R2}"):
        service.check_answered(context, R2)


def test_a_canary_never_goes_live_by_the_way_of_a_first_deployment(context: Any, ti: Any, spec: ModelSpec) -> None:
    task = GoLive(task_id="go_live", spec=spec)
    left(ti, "canary", R2)
    with pytest.raises(CanaryLost, match=f"{R2} stands beside a stable revision"):
        task.check_proven(context, R2)
    left(ti, "first", R2)
    task.check_proven(context, R2)
    with pytest.raises(CanaryLost, match=f"task smoke did not ask {R1}"):
        task.check_proven(context, R1)
