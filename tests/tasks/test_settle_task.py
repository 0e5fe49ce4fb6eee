"""The teardown against the sandbox's real API server: what it settles is whatever its run had in its hands."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from model_release.serving import rollout
from model_release.serving.lease import Lease, Owner
from model_release.serving.progress import State, wait
from model_release.spec import ModelSpec
from model_release.tasks import records
from model_release.tasks.finish import Settle
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService

from .cluster import Kube, wanted


def opened(kube: Kube, spec: ModelSpec, run: str) -> Owner:
    """v1 is stable, and `run` has v2 open at 30 %."""
    for version in ("v1", "v2"):
        asked, live = wanted(spec, version), kube.services.get("models", "digits")
        baseline = rollout.baseline_of(live, asked)
        template = rollout.stage(kube.services, asked, baseline).template_digest
        assess = partial(rollout.assess_staged, wanted=asked, baseline=baseline, template=template)
        found = wait(lambda assess=assess: assess(kube.services.get("models", "digits")), 5, poll=0.01)  # type: ignore[misc]
        assert found.state is State.READY, found
    canary = rollout.canary_of(kube.services.get("models", "digits"), baseline)  # type: ignore[arg-type]
    rollout.shift(kube.services, canary, 30)
    owner = Owner("release_digits", run, f"http://airflow/{run}", "http://airflow")
    kube.leases.acquire("models", "digits", owner)
    facts = {"baseline": baseline, "canary": canary.revision, "percent": 30, "stage": "open at 30 %"}
    kube.leases.update("models", "digits", owner, lambda claim: replace(claim, **facts))
    return owner


def test_what_was_taken_over_and_not_settled_yet_is_settled(
    kube: Kube, spec: ModelSpec, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run, or its claim, was marked successful by hand while it still settled what another had left."""
    monkeypatch.setattr(records, "change", lambda *_: None)
    monkeypatch.setattr("model_release.tasks.service.prover", lambda *_: None)
    dead, run = opened(kube, spec, "run-0"), Run.of(context, spec)
    assert isinstance(kube.leases.acquire("models", "digits", ReleasedService(spec, run).owner, over=dead), Lease)
    sentence = Settle(task_id="settle", spec=spec).release(context, run)
    live, lease = kube.services.get("models", "digits"), kube.leases.read("models", "digits")
    assert live is not None
    assert lease is not None
    assert sentence.endswith("has all of the traffic")
    assert (live.canary_percent, live.storage_uri) == (None, "s3://models/digits/versions/v1/")
    assert lease.holder is None
