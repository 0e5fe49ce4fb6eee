"""What a build refuses before it begins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_release.errors import SpecError
from model_release.judging.record import Record
from model_release.release import index as history
from model_release.spec import ModelSpec
from model_release.tasks import connections, records
from model_release.tasks.build import Resolve, check_service, check_was_live
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService

from .cluster import Kube

VERSION = "0123456789abcdef"
STORE: Any = SimpleNamespace(uri="s3://models/digits/")


def past(monkeypatch: pytest.MonkeyPatch, *releases: tuple[str, str | None], lease: str | None = None) -> None:
    """Releases of models/digits unless a version says of which other service."""
    entries = [
        SimpleNamespace(
            release=str(number),
            version=version.partition("@")[0],
            service=version.partition("@")[2] or "models/digits",
            outcome=outcome,
        )
        for number, (version, outcome) in enumerate(releases)
    ]
    record = SimpleNamespace(cluster=lease and {"lease": lease})
    found = SimpleNamespace(entries=lambda: iter(entries), record=lambda _: record)
    monkeypatch.setattr(history, "History", lambda store: found)


@pytest.fixture
def released(kube: Kube, spec: ModelSpec, context: dict[str, Any]) -> ReleasedService:
    one = ReleasedService(spec, Run.of(context, spec))
    one.leases.acquire("models", "digits", one.owner)
    return one


@pytest.mark.parametrize("outcome", ["promoted", "first"])
def test_a_version_that_a_release_left_live_may_go_live_directly(
    released: ReleasedService, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    past(monkeypatch, ("fedcba9876543210", "rolled_back"), (VERSION, outcome))
    check_was_live(STORE, VERSION, released)
    lease = released.leases.read("models", "digits")
    assert lease is not None
    past(monkeypatch, (VERSION, outcome), lease=lease.uid)
    check_was_live(STORE, VERSION, released)


@pytest.mark.parametrize("outcome", ["rolled_back", "published", "failed", "nothing_new", None])
def test_a_version_that_no_release_left_live_needs_a_canary(
    released: ReleasedService, monkeypatch: pytest.MonkeyPatch, outcome: str | None
) -> None:
    past(monkeypatch, ("fedcba9876543210", "promoted"), (VERSION, outcome))
    with pytest.raises(SpecError, match=f"left {VERSION} live on models/digits; rollout: canary proves it"):
        check_was_live(STORE, VERSION, released)


def test_17_5_a_version_that_is_live_on_another_service_needs_a_canary_on_this_one(
    released: ReleasedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    past(monkeypatch, (f"{VERSION}@staging/digits", "promoted"), (f"{VERSION}@models/letters", "first"))
    with pytest.raises(SpecError, match=f"left {VERSION} live on models/digits"):
        check_was_live(STORE, VERSION, released)
    past(monkeypatch, (VERSION, "promoted"), lease="the Lease of a service of that name in another cluster")
    with pytest.raises(SpecError, match=f"left {VERSION} live on models/digits"):
        check_was_live(STORE, VERSION, released)


@pytest.mark.usefixtures("kube")
def test_a_run_without_a_canary_ends_before_it_records_a_version_that_was_never_live(
    spec: ModelSpec, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    past(monkeypatch)
    monkeypatch.setattr(connections, "store", lambda uri: STORE)
    monkeypatch.setattr(Resolve, "find", lambda *_: {"version": VERSION, "source": {}})
    monkeypatch.setattr(records, "change", lambda *_: pytest.fail("the refusal comes first"))
    context["params"] |= {"version": VERSION, "rollout": "direct", "note": "quickly"}
    task = Resolve(task_id="resolve", spec=spec, root=Path(), build="export", built="publish")
    with pytest.raises(SpecError, match="is for a version that was live before"):
        task.choose_branch(context)


@pytest.mark.usefixtures("kube")
@pytest.mark.parametrize(("version", "kept"), [(VERSION, "promoted"), ("fedcba9876543210", None)])
def test_how_an_earlier_try_of_the_run_ended_is_kept_for_the_same_version_only(
    spec: ModelSpec, context: dict[str, Any], ti: Any, monkeypatch: pytest.MonkeyPatch, version: str, kept: str | None
) -> None:
    record = Record.new("r", model="digits", service="models/digits", version=VERSION, started="2026-03-01T02:00:00Z")
    record.finish("promoted", "0 of 300 failed", "2026-03-01T02:10:00Z")
    monkeypatch.setattr(records, "change", lambda spec, run, edit: edit(record))
    monkeypatch.setattr(Resolve, "find", lambda *_: {"version": version, "source": {}})
    monkeypatch.setattr(Resolve, "is_live", lambda *_: False)
    task = Resolve(task_id="resolve", spec=spec, root=Path(), build="export", built="publish")
    task.choose_branch(context)
    assert (record.version, record.outcome, bool(record.ended)) == (version, kept, kept is not None)


@pytest.mark.parametrize(("built", "says"), [({"runtime": "kserve"}, "kserve"), ({}, "torchserve")])
def test_a_version_of_another_runtime_is_refused_before_anything_moves(
    spec: ModelSpec, built: dict[str, str], says: str
) -> None:
    """Versions of earlier editions do not say; they are TorchServe's."""
    version = SimpleNamespace(name=VERSION, metadata={"service": spec.service.name, **built})
    other = {"kserve": "torchserve", "torchserve": "kserve"}[says]
    check_service(version, spec.model_copy(update={"runtime": says}))
    with pytest.raises(SpecError) as refused:
        check_service(version, spec.model_copy(update={"runtime": other}))
    assert str(refused.value) == (
        f"version {VERSION} was built for runtime {says}, and the model file says runtime: {other}; runtime: {says} "
        "releases it, or build it again for this one"
    )
