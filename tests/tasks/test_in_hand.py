"""What a run does with what it has in its hands, when it ends and when it begins again, against the sandbox's real API
server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from tests.patience import LIMIT

from model_release.cluster import rollout
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.lease import Lease
from model_release.cluster.progress import Progress, State, wait
from model_release.cluster.release import Cause, Owner, Phase, Watched
from model_release.errors import CanaryLost
from model_release.release.emergency import Person, promote_anyway
from model_release.spec import ModelSpec
from model_release.tasks import records
from model_release.tasks.build import Resolve
from model_release.tasks.finish import Settle
from model_release.tasks.run import Run
from model_release.tasks.serve import RollBack
from model_release.tasks.service import ReleasedService

from .cluster import PROJECT, Kube, wanted


def opened(kube: Kube, spec: ModelSpec, owner: Owner) -> None:
    """v1 is stable, and `owner` has v2 open at 30 %."""

    def until(assess: Callable[[InferenceService | None], Progress]) -> None:
        found = wait(lambda: assess(kube.services.get("models", "digits")), LIMIT, poll=0.01)
        assert found.state is State.READY, found

    for version in ("v1", "v2"):
        asked = wanted(spec, version)
        baseline = rollout.baseline_of(kube.services.get("models", "digits"), asked)
        template = rollout.stage(kube.services, asked, baseline).template_digest
        until(partial(rollout.assess_staged, wanted=asked, baseline=baseline, template=template))
    canary = rollout.canary_of(kube.live(), baseline)
    rollout.shift(kube.services, canary, 30)
    until(partial(rollout.assess_split, canary=canary, percent=30))
    kube.leases.acquire("models", "digits", owner)
    facts = {"baseline": baseline, "canary": canary.revision, "template": canary.template, "phase": Phase.OPEN}
    kube.leases.update("models", "digits", owner, lambda now: replace(now, **facts, watches=(Watched(30, "x"),)))


def test_what_was_taken_over_and_not_settled_yet_is_settled(
    kube: Kube, spec: ModelSpec, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run, or its claim, was marked successful by hand while it still settled what another had left."""
    monkeypatch.setattr(records, "change", lambda *_: None)
    monkeypatch.setattr("model_release.tasks.service.prover", lambda *_: None)
    dead, run = Owner("release_digits", "run-0", "http://airflow/0", "http://airflow"), Run.of(context, spec)
    opened(kube, spec, dead)
    assert isinstance(kube.leases.acquire("models", "digits", ReleasedService(spec, run).owner, over=dead), Lease)
    sentence = Settle(task_id="settle", spec=spec).release(context, run)
    live, lease = kube.services.get("models", "digits"), kube.leases.read("models", "digits")
    assert live is not None
    assert lease is not None
    assert sentence.endswith("has all of the traffic")
    assert (live.canary_percent, live.storage_uri) == (None, "s3://models/digits/versions/v1/")
    assert lease.holder is None


@pytest.mark.parametrize(
    "noted",
    [
        {},
        {"phase": Phase.PROVEN, "watches": ()},  # its task was killed before it told
        {"phase": Phase.PROMOTED, "word": "0 of 300"},  # killed before it wrote
    ],
    ids=["watched", "opened", "promoting"],
)
def test_a_canary_whose_run_begins_again_is_not_left_open_unwatched(
    kube: Kube, spec: ModelSpec, context: Any, monkeypatch: pytest.MonkeyPatch, noted: dict[str, Any]
) -> None:
    """Cleared as a whole while its canary was open: to build its newest candidate may take hours."""
    told: list[Any] = []
    monkeypatch.setattr(records, "change", lambda *said: told.append(said))
    released = ReleasedService(spec, Run.of(context, spec))
    opened(kube, spec, released.owner)
    kube.leases.update("models", "digits", released.owner, lambda claim: replace(claim, **noted))
    task = Resolve(task_id="resolve", spec=spec, root=PROJECT, build="export", built="publish")
    monkeypatch.setattr(task, "find", lambda _: {"source": {}})
    assert task.choose_branch(context) == "export"
    live, claim = kube.live(), released.held()
    assert live.serving == {"digits-predictor-00001": 100}
    assert (claim.canary, claim.percent, claim.promoted) == ("digits-predictor-00002", None, False)
    with pytest.raises(CanaryLost, match="no canary is open"):
        promote_anyway(
            kube.services, kube.leases, "models", "digits", Person("anna", "why", released.owner),
            seconds=1, tell=lambda _: None,
        )  # fmt: skip
    before = live.raw["metadata"]["generation"]  # of the spec; KServe still writes the status
    assert task.choose_branch(context) == "export"
    assert kube.live().raw["metadata"]["generation"] == before


def test_a_roll_back_that_somebody_runs_by_hand_is_recorded_as_a_persons(
    kube: Kube, spec: ModelSpec, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleared or run alone: nobody had decided anything, and from then on the canary is not to be promoted."""
    monkeypatch.setattr(records, "change", lambda *_: None)
    monkeypatch.setattr("model_release.tasks.service.prover", lambda *_: None)
    run = Run.of(context, spec)
    released = ReleasedService(spec, run)
    opened(kube, spec, released.owner)
    for _ in range(2):
        RollBack(task_id="roll_back", spec=spec).release(context, run)
        assert kube.live().serving == {"digits-predictor-00001": 100}
        held = released.held()
        assert (held.phase, held.cause) == (Phase.RESTORED, Cause.PERSON)
