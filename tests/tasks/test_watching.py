"""A candidate that comes starts one release, however often it is told of; and what other DAGs are told."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor
from airflow.serialization.encoders import encode_trigger
from airflow.serialization.serialized_objects import DagSerialization

from model_release.build.source import newest
from model_release.cluster.release import Cause, Phase
from model_release.errors import CheckpointError, StoreContested, StoreRefused, StoreUnavailable
from model_release.judging.record import Record
from model_release.release.index import History
from model_release.spec import ModelSpec
from model_release.tasks import connections, records, watching
from model_release.tasks.assets import back_live, candidate_asset, live_asset
from model_release.tasks.build import Resolve
from model_release.tasks.dag import release_dag
from model_release.tasks.retrain import retrain_dag
from model_release.tasks.run import Run
from model_release.tasks.serve import RollBack
from model_release.tasks.service import ReleasedService
from model_release.tasks.watching import CandidateTrigger, take

from .conftest import SPEC
from .test_registry import Store

PROJECT = Path(__file__).resolve().parents[2]
WATCHED = {**SPEC, "source": {"directory": "candidates/digits", "watch": "1s"}}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    monkeypatch.setattr(connections, "store", lambda _: found)
    return found


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec.model_validate(WATCHED)


def put(project: Path, name: str, *files: str) -> None:
    folder = project / "candidates" / "digits" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in files or ("config.json", "preprocessor_config.json", "model.safetensors"):
        (folder / file).write_text("{}")


# What is seen


def test_the_newest_candidate_that_is_whole_is_seen_by_its_name(tmp_path: Path) -> None:
    source = {"directory": "candidates/digits"}
    with pytest.raises(CheckpointError, match="is no folder"):
        newest(source, base=tmp_path)
    put(tmp_path, "20261122T230000")
    assert newest(source, base=tmp_path) == "directory:candidates/digits/20261122T230000"
    put(tmp_path, "20261123T230000", "config.json", "preprocessor_config.json")
    assert newest(source, base=tmp_path) is None, "its weights are still being written"
    put(tmp_path, "20261123T230000")
    assert newest(source, base=tmp_path) == "directory:candidates/digits/20261123T230000"


def test_a_place_that_holds_one_checkpoint_has_no_candidates_to_wait_for(tmp_path: Path) -> None:
    put(tmp_path, ".")
    with pytest.raises(CheckpointError, match="holds one checkpoint, and no candidates"):
        newest({"directory": "candidates/digits"}, base=tmp_path)


class Events:
    """What a trigger tells, while things happen around it."""

    def __init__(self, spec: ModelSpec, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trigger = CandidateTrigger.of(spec, project)
        self._between = list[Any]()
        monkeypatch.setattr(watching, "asyncio", SimpleNamespace(sleep=self._slept))

    async def _slept(self, seconds: float) -> None:
        assert seconds == 1.0
        if not self._between:
            raise asyncio.CancelledError
        if (call := self._between.pop(0)) is not None:
            call()

    def during(self, *between: Any) -> list[str]:
        """Each is called between two looks."""
        self._between = list(between)

        async def collect() -> list[str]:
            found: list[str] = []
            with suppress(asyncio.CancelledError):
                async for event in self.trigger.run():
                    found += [event.payload["candidate"].rpartition("/")[2]]
            return found

        return asyncio.run(collect())


def test_each_new_candidate_is_told_once(
    spec: ModelSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events(spec, tmp_path, monkeypatch)
    first, second = "20261122T230000", "20261123T230000"
    assert events.during(None, lambda: put(tmp_path, first), None, lambda: put(tmp_path, second), None) == [
        first,
        second,
    ]
    assert events.during(None) == [second], "a triggerer that starts anew tells again of what no release took"
    take(store, "digits", f"directory:candidates/digits/{second}", "digits-1", by_event=True)
    assert events.during(None, None) == []


@pytest.mark.parametrize("how", ["named by the form", "of a backfill"])
def test_an_older_one_that_is_released_does_not_make_the_newest_new_again(
    how: str, resolve: Any, spec: ModelSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody goes back to the one before, since the newest was bad; a triggerer that is started again, or a DAG that
    was paused, must not give the bad one to users once more."""
    older, newer = (f"directory:candidates/digits/{name}" for name in ("20261122T230000", "20261123T230000"))
    for one in (older, newer):
        put(tmp_path, one.rpartition("/")[2])
    assert resolve("run-1", "asset_triggered", newer, "rolled_back") == ("export", None)
    if how == "named by the form":
        assert resolve("run-2", "manual", older, "promoted", revision="20261122T230000") == ("export", None)
    else:
        assert resolve("run-2", "backfill", older, "promoted", rollout="canary") == ("export", None)
    assert Events(spec, tmp_path, monkeypatch).during(None) == []
    assert resolve("run-3", "asset_triggered", newer, None)[0] == []
    assert resolve("run-4", "asset_triggered", older, None)[0] == [], "what was named has been taken, too"
    put(tmp_path, "20261124T230000")
    assert Events(spec, tmp_path, monkeypatch).during(None) == ["20261124T230000"]


def test_what_is_away_stops_no_looking(
    spec: ModelSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "20261122T230000")
    read, away = store.read_json, [True, True]

    def read_json(key: str) -> Any:
        if away and away.pop():
            raise StoreUnavailable("S3 does not answer")
        return read(key)

    monkeypatch.setattr(store, "read_json", read_json)
    assert Events(spec, tmp_path, monkeypatch).during(None, None, None) == ["20261122T230000"]


def test_clients_are_made_once_and_anew_after_a_trouble(
    spec: ModelSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To make one takes the triggerer's time from all others; one with old keys would be refused for ever."""
    put(tmp_path, "20261122T230000")
    made = list[int]()
    monkeypatch.setattr(connections, "store", lambda _: made.append(1) or store)
    events = Events(spec, tmp_path, monkeypatch)
    events.during(None, None)
    assert len(made) == 1
    read, refusals = store.read_json, [1]

    def read_json(key: str) -> Any:
        if refusals and refusals.pop():
            raise StoreRefused("the credentials have expired")
        return read(key)

    monkeypatch.setattr(store, "read_json", read_json)
    events.during(None, None)
    assert len(made) == 2


def test_a_folder_that_cannot_be_read_now_stops_no_looking(
    spec: ModelSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that ends the trigger has Airflow start it again at once, and again, whatever `watch` says."""
    put(tmp_path, "20261122T230000")
    seen, stale = Path.iterdir, [True]

    def iterdir(path: Path) -> Any:
        if stale and stale.pop():
            raise OSError(116, "Stale file handle", str(path))
        return seen(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert Events(spec, tmp_path, monkeypatch).during(None, None) == ["20261122T230000"]


# What comes of it


@pytest.fixture
def resolve(
    spec: ModelSpec, store: Store, context: dict[str, Any], ti: Any, kube: Any, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """resolve(run_id, run_type, candidate, how its release ends, what the form says) → where it goes, and why."""
    found: dict[str, str | None] = {}
    monkeypatch.setattr(records, "change", lambda *_: None)
    monkeypatch.setattr(Resolve, "is_live", lambda *_: False)

    def record(_: Any, release: str) -> Record:
        one = Record.new(release, model="digits", service="models/digits", version=None, started=records.now())
        one.outcome = found[release]
        return one

    monkeypatch.setattr(History, "record", record)

    def go(run_id: str, run_type: str, candidate: str, outcome: str | None, **form: str) -> tuple[Any, Any]:
        context["dag_run"].run_id, context["dag_run"].run_type = run_id, run_type
        context["params"] = form
        context["dag_run"].data_interval_end = context["dag_run"].run_after
        found[Run.of(context, spec).release] = outcome
        monkeypatch.setattr(Resolve, "find", lambda *_: {"build": "b", "source": {}, "candidate": candidate})
        where = Resolve(task_id="resolve", spec=spec, root=PROJECT, build="export", built="publish")
        return where.choose_branch(context), ti.xcoms["this", "resolved"]["nothing_new"]

    return go


@pytest.mark.parametrize("first", ["asset_triggered", "manual", "scheduled"])
def test_the_same_event_twice_gives_one_release(resolve: Any, first: str) -> None:
    assert resolve("run-1", first, "A", "rolled_back") == ("export", None)
    where, why = resolve("run-2", "asset_triggered", "A", None)
    assert where == []
    assert re.fullmatch(r"A was taken by the release digits-\S+ already; nothing new\.", why)
    assert resolve("run-3", "asset_triggered", "B", "promoted") == ("export", None)


def test_a_run_that_is_cleared_goes_on_with_its_own_candidate(resolve: Any) -> None:
    for _ in range(2):
        assert resolve("run-1", "asset_triggered", "A", None) == ("export", None)


def test_a_person_or_a_schedule_releases_it_again(resolve: Any) -> None:
    resolve("run-1", "asset_triggered", "A", "rolled_back")
    assert resolve("run-2", "manual", "A", "rolled_back") == ("export", None)
    assert resolve("run-3", "scheduled", "A", "rolled_back") == ("export", None)


def test_a_release_that_failed_took_nothing(resolve: Any) -> None:
    resolve("run-1", "asset_triggered", "A", "failed")
    assert resolve("run-2", "asset_triggered", "A", "promoted") == ("export", None)


def test_two_that_take_it_at_one_moment_are_one_after_the_other(store: Store) -> None:
    store.before_write = lambda: take(store, "digits", "A", "r1", by_event=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(History, "record", lambda *_: Record.new("r1", model="", service="", version=None, started=""))
        assert take(store, "digits", "A", "r2", by_event=True) == "r1"
    store.write_json = lambda *_, **__: (_ for _ in ()).throw(StoreContested("x"))
    with pytest.raises(StoreContested, match="somebody writes it all the time"):
        take(store, "digits", "B", "r3", by_event=False)


# As Airflow sees it


def test_every_dag_that_names_the_candidates_has_the_same_watcher(spec: ModelSpec) -> None:
    """Airflow takes a watcher away that a DAG does not have, and the last one parsed has the say."""
    training = {"training": {"run": "sandbox.training:digits"}, "schedule": "0 6 * * *"}
    both = ModelSpec.model_validate({**WATCHED, **training})
    (outlet,) = retrain_dag(both, PROJECT).get_task("offer").outlets
    released = release_dag(both, PROJECT)
    (asset,) = released.timetable.asset_condition.objects
    seen = [encode_trigger(watcher.trigger) for one in (outlet, asset) for watcher in one.watchers]
    assert seen == [encode_trigger(CandidateTrigger.of(both, PROJECT))] * 2
    assert candidate_asset(both).watchers == [], "a key needs none"
    for dag in (released, release_dag(spec, PROJECT)):
        assert "watching.CandidateTrigger" in json.dumps(DagSerialization.to_dict(dag))


def test_without_watch_nobody_looks() -> None:
    dag = release_dag(ModelSpec.model_validate(SPEC), PROJECT)
    assert "CandidateTrigger" not in json.dumps(DagSerialization.to_dict(dag))


def test_the_trigger_is_the_same_for_the_same_file(spec: ModelSpec) -> None:
    path, given = CandidateTrigger.of(spec, PROJECT).serialize()
    assert path == "model_release.tasks.watching.CandidateTrigger"
    assert CandidateTrigger(**json.loads(json.dumps(given))).serialize() == (path, given)


def test_tasks_tell_of_versions_and_of_what_users_get(spec: ModelSpec) -> None:
    dag: DAG = release_dag(spec, PROJECT)
    told = {task.task_id: [one.name for one in task.outlets] for task in dag.tasks if task.outlets}
    live = ["live_digits"]
    assert told == {
        "publish": ["version_digits"],
        "go_live": live,
        "go_direct": live,
        "promote": live,
        "roll_back": ["back_live_digits"],
    }


@pytest.mark.parametrize("promoted", [False, True])
def test_a_roll_back_tells_of_what_users_get_only_where_that_changed(
    promoted: bool, spec: ModelSpec, kube: Any, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from model_release.cluster.change import Baseline
    from model_release.cluster.release import Release

    run = Run.of(context, spec)
    released = ReleasedService(spec, run)
    kube.leases.acquire("models", "digits", released.owner, "r1")
    uri = "s3://models/digits/versions/0123456789abcdef/"
    released.note(baseline=Baseline(revision="digits-00001", storage_uri=uri), canary="digits-00002")

    def back(now: Release) -> Release:
        at = datetime.now().astimezone().isoformat() if promoted else None
        return replace(now.close("too many errors", Cause.EVIDENCE), phase=Phase.RESTORED, promoted_at=at)

    kube.leases.update("models", "digits", released.owner, back)
    monkeypatch.setattr(ReleasedService, "take_back", lambda *_: SimpleNamespace(sentence="back"))
    assert RollBack(task_id="roll_back", spec=spec).release(context, run) == "back"
    added = context["outlet_events"][back_live(spec)].added if context["outlet_events"] else []
    extra = {
        "version": "0123456789abcdef",
        "uri": uri,
        "service": "models/digits",
        "how": "roll_back",
        "release": run.page,
    }
    assert added == ([(live_asset(spec), extra)] if promoted else [])


def test_the_page_shows_a_dag_that_follows() -> None:
    page = (PROJECT / "docs" / "assets.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/assets.md", "exec"), names)  # it is our own page
    following = names["following"]
    assert "live_faces" in json.dumps(DagSerialization.to_dict(following))
    asset = live_asset(ModelSpec.model_validate({**SPEC, "model": "faces"}))
    event = SimpleNamespace(asset=asset, source_aliases=[], extra={"uri": "s3://models/faces/versions/1/"})
    # Not by `Asset.ref`: docs/facts.md#runs-by-an-assets-name-see-no-event.
    seen = TriggeringAssetEventsAccessor.build([event])
    told = following.get_task("which").python_callable(triggering_asset_events=seen)
    assert told == "s3://models/faces/versions/1/"
    (scheduled,) = following.timetable.asset_condition.objects
    assert (scheduled.name, scheduled.uri, scheduled.group) == (asset.name, asset.uri, asset.group)
