"""What a registry is told of its models' releases, whatever is away or comes in between. The real server:
tests/mlflow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from model_release.build.registry import ModelVersion
from model_release.errors import CheckpointError, SourceUnavailable, StoreContested
from model_release.judging.record import Record
from model_release.spec import ModelSpec
from model_release.tasks import connections, registry
from model_release.tasks.emergency import RollBackNow
from model_release.tasks.run import Run
from model_release.tasks.sweep import Sweep

from .conftest import SPEC


class Store:
    """Documents in memory, with conditions. `before_write` is called once, before the next write."""

    uri = "s3://models/digits/"

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.writes = 0
        self.before_write: Callable[[], None] | None = None

    def read_json(self, key: str) -> tuple[Any, str | None]:
        content, tag = self.kept.get(key, (None, None))
        return copy.deepcopy(content), tag

    def write_json(self, key: str, content: Any, *, if_match: str | None) -> str:
        if self.before_write is not None:
            call, self.before_write = self.before_write, None
            call()
        if self.kept.get(key, (None, None))[1] != if_match:
            raise StoreContested("somebody wrote")
        self.writes += 1
        self.kept[key] = (copy.deepcopy(content), f"tag {self.writes}")
        return f"tag {self.writes}"


class Mlflow:
    """A registry in memory with the versions 1 to 9."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.aliases: dict[str, str] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.gone: set[str] = set()
        self.calls: list[str] = []

    def _asked(self, what: str) -> None:
        self.calls.append(what)
        if self.trouble is not None:
            raise self.trouble

    def version(self, name: str, version: str) -> ModelVersion | None:
        self._asked("version")
        if version in self.gone:
            return None
        return ModelVersion(name, version, f"mlflow-artifacts:/{version}", datetime(2026, 1, 1, tzinfo=UTC))

    def at(self, name: str, alias: str) -> ModelVersion | None:
        self._asked("at")
        return self.version(name, self.aliases[alias]) if alias in self.aliases else None

    def tag(self, version: ModelVersion, tags: dict[str, str]) -> None:
        self._asked("tag")
        self.tags.setdefault(version.version, {}).update(tags)

    def move(self, name: str, alias: str, version: str | None) -> None:
        self._asked("move")
        if version is None:
            self.aliases.pop(alias, None)
        else:
            self.aliases[alias] = version

    def outcome(self, version: str) -> str | None:
        return self.tags.get(version, {}).get("model_release.outcome")


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    found = Mlflow()
    monkeypatch.setattr(connections, "mlflow", lambda: found)
    return found


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    monkeypatch.setattr(connections, "store", lambda _: found)
    return found


@pytest.fixture
def spec() -> ModelSpec:
    source = {"mlflow": "models:/digits@candidate", "on_promotion": "champion"}
    return ModelSpec.model_validate({**SPEC, "source": source})


def record(version: str, outcome: str, at: int, release: str | None = None) -> Record:
    """A release of the registry's `version`, that ended at minute `at`."""
    found = Record.new(
        release or f"digits-{version}",
        model="digits",
        service="models/digits",
        version="0123456789abcdef",
        started="2026-03-01T02:00:00.000+00:00",
    )
    found.source = {"origin": f"models:/digits/{version}", "commit": f"mlflow-artifacts:/{version}"}
    found.finish(outcome, f"{outcome}: 0 of 300.", f"2026-03-01T03:{at:02}:00.000+00:00")
    return found


def test_a_promotion_moves_the_alias_and_tags_the_version(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    registry.note(spec, record("7", "promoted", 1), "http://airflow/releases/digits-7")
    assert mlflow.aliases == {"champion": "7"}
    assert mlflow.tags["7"] == {
        "model_release.outcome": "promoted",
        "model_release.why": "promoted: 0 of 300.",
        "model_release.version": "0123456789abcdef",
        "model_release.service": "models/digits",
        "model_release.release": "digits-7",
        "model_release.link": "http://airflow/releases/digits-7",
    }


def test_said_again_nothing_is_said(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    registry.note(spec, record("7", "promoted", 1), "")
    calls, writes = len(mlflow.calls), store.writes
    registry.note(spec, record("7", "promoted", 1), "")
    registry.write(spec)
    assert (len(mlflow.calls), store.writes) == (calls, writes)


def test_without_on_promotion_no_alias_is_touched(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    source = spec.source.model_copy(update={"on_promotion": None})
    registry.note(spec.model_copy(update={"source": source}), record("7", "promoted", 1), "")
    assert (mlflow.aliases, mlflow.outcome("7")) == ({}, "promoted")


@pytest.mark.parametrize("outcome", ["nothing_new", "published"])
def test_what_says_nothing_of_a_version_is_not_told(
    outcome: str, spec: ModelSpec, mlflow: Mlflow, store: Store
) -> None:
    registry.note(spec, record("7", outcome, 1), "")
    assert (mlflow.calls, store.writes) == ([], 0)


def test_a_version_of_another_source_is_not_told(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    one = record("7", "promoted", 1)
    one.source = {"origin": "directory:candidates/digits/20261122T230000", "commit": None}
    registry.note(spec, one, "")
    assert mlflow.calls == []


@pytest.mark.parametrize("trouble", [SourceUnavailable("MLflow does not answer"), CheckpointError("403")])
def test_a_registry_that_is_away_is_told_later_by_the_sweep(
    trouble: Exception, spec: ModelSpec, mlflow: Mlflow, store: Store
) -> None:
    mlflow.trouble = trouble
    registry.note(spec, record("7", "promoted", 1), "")
    assert mlflow.tags == {}
    sweep = Sweep(task_id="sweep", services=[[spec]])
    sweep._tell_registries()
    assert mlflow.tags == {}
    mlflow.trouble = None
    sweep._tell_registries()
    assert (mlflow.aliases, mlflow.outcome("7")) == ({"champion": "7"}, "promoted")


def test_a_tag_that_is_refused_keeps_no_alias_waiting(
    spec: ModelSpec, mlflow: Mlflow, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users have the version, and `champion` would name another one for ever."""
    tag = Mlflow.tag

    def refused(self: Mlflow, version: ModelVersion, tags: dict[str, str]) -> None:
        self._asked("tag")
        if version.version == "7":
            raise CheckpointError("MLflow refuses model-versions/set-tag (403)")
        tag(self, version, tags)

    monkeypatch.setattr(Mlflow, "tag", refused)
    registry.note(spec, record("7", "failed", 1), "")
    assert mlflow.calls.count("tag") == 1
    registry.note(spec, record("8", "promoted", 2), "")
    assert (mlflow.aliases, mlflow.outcome("8")) == ({"champion": "8"}, "promoted")
    calls, writes = mlflow.calls.count("tag"), store.writes
    registry.write(spec)
    assert (mlflow.calls.count("tag"), store.writes) == (calls + 1, writes), "once a sweep, and nothing new to keep"
    monkeypatch.setattr(Mlflow, "tag", tag)
    registry.write(spec)
    assert mlflow.outcome("7") == "failed"


def test_a_trouble_as_long_as_a_log_is_cut(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    one = record("7", "failed", 1)
    one.reason = "task export failed: " + "x" * 200_000
    registry.note(spec, one, "")
    assert len(mlflow.tags["7"]["model_release.why"]) == registry._LONGEST


def test_or_by_the_next_release_and_the_newest_word_stands(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    mlflow.trouble = SourceUnavailable("MLflow does not answer")
    registry.note(spec, record("7", "promoted", 1), "")
    mlflow.trouble = None
    registry.note(spec, record("8", "promoted", 2), "")
    assert mlflow.aliases == {"champion": "8"}
    assert (mlflow.outcome("7"), mlflow.outcome("8")) == ("promoted", "promoted")
    registry.note(spec, record("7", "promoted", 1), "")  # the older one's task, run again
    assert mlflow.aliases == {"champion": "8"}


def test_a_late_roll_back_takes_the_alias_back_to_where_it_stood(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    mlflow.aliases["champion"] = "5"
    registry.note(spec, record("7", "promoted", 1), "")
    assert mlflow.aliases == {"champion": "7"}
    for _ in range(2):
        registry.note(spec, record("7", "rolled_back", 2), "")
        assert (mlflow.aliases, mlflow.outcome("7")) == ({"champion": "5"}, "rolled_back")


def test_a_roll_back_of_what_was_never_told_names_what_was_promoted_before(
    spec: ModelSpec, mlflow: Mlflow, store: Store
) -> None:
    mlflow.aliases["champion"] = "5"
    mlflow.trouble = SourceUnavailable("MLflow does not answer")
    registry.note(spec, record("7", "promoted", 1), "")
    registry.note(spec, record("8", "promoted", 2), "")
    registry.note(spec, record("8", "rolled_back", 3), "")
    mlflow.trouble = None
    registry.write(spec)
    assert mlflow.aliases == {"champion": "7"}, "users have it"


@pytest.mark.parametrize("there", ["9", None])
def test_an_alias_that_somebody_moved_since_stays_there(
    there: str | None, spec: ModelSpec, mlflow: Mlflow, store: Store
) -> None:
    mlflow.aliases["champion"] = "5"
    registry.note(spec, record("7", "promoted", 1), "")
    mlflow.move("digits", "champion", there)
    calls = len(mlflow.calls)
    registry.note(spec, record("7", "rolled_back", 2), "")
    assert (mlflow.aliases.get("champion"), mlflow.outcome("7")) == (there, "rolled_back")
    assert "move" not in mlflow.calls[calls:]


def test_where_it_stood_nowhere_it_is_taken_away(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    registry.note(spec, record("7", "promoted", 1), "")
    registry.note(spec, record("7", "rolled_back", 2), "")
    assert mlflow.aliases == {}


def test_a_promotion_and_its_roll_back_while_the_registry_is_away_leave_the_alias_where_it_is(
    spec: ModelSpec, mlflow: Mlflow, store: Store
) -> None:
    mlflow.aliases["champion"] = "5"
    mlflow.trouble = SourceUnavailable("MLflow does not answer")
    registry.note(spec, record("7", "promoted", 1), "")
    registry.note(spec, record("7", "rolled_back", 2), "")
    mlflow.trouble = None
    registry.write(spec)
    assert (mlflow.aliases, mlflow.outcome("7")) == ({"champion": "5"}, "rolled_back")


def test_a_canary_that_is_rolled_back_moves_no_alias(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    mlflow.aliases["champion"] = "5"
    registry.note(spec, record("7", "rolled_back", 1), "")
    assert (mlflow.aliases, mlflow.outcome("7")) == ({"champion": "5"}, "rolled_back")


def test_a_version_that_is_gone_or_another_ones_keeps_nothing_waiting(
    spec: ModelSpec, mlflow: Mlflow, store: Store
) -> None:
    """A registry that was set up anew counts from 1 again."""
    mlflow.gone = {"7"}
    other = record("6", "promoted", 2)
    other.source = {"origin": "models:/digits/6", "commit": "s3://elsewhere/6"}
    for one in (record("7", "promoted", 1), other):
        registry.note(spec, one, "")
        calls = len(mlflow.calls)
        registry.write(spec)
        assert (len(mlflow.calls), mlflow.aliases, mlflow.tags) == (calls, {}, {})


def test_two_hands_end_with_the_newest_word(spec: ModelSpec, mlflow: Mlflow, store: Store) -> None:
    """The sweep says an old promotion while a new release ends: what it said last would stand for ever."""
    mlflow.trouble = SourceUnavailable("MLflow does not answer")
    registry.note(spec, record("7", "promoted", 1), "")
    mlflow.trouble, mlflow.aliases = None, {"champion": "5"}

    said = Mlflow.move

    def overtaken(self: Mlflow, name: str, alias: str, version: str | None) -> None:
        if version == "7":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Mlflow, "move", said)
                registry.note(spec, record("8", "promoted", 2), "")
            assert self.aliases == {"champion": "8"}
        said(self, name, alias, version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mlflow, "move", overtaken)
        registry.write(spec)
    assert mlflow.aliases == {"champion": "8"}


def test_a_person_who_takes_a_promotion_back_takes_the_alias_back(
    spec: ModelSpec, mlflow: Mlflow, store: Store, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_release.cluster.release import Owner
    from model_release.release.emergency import Person
    from model_release.tasks import records

    mlflow.aliases["champion"] = "5"
    registry.note(spec, record("7", "promoted", 1), "")
    registry.note(spec, record("8", "failed", 2), "")
    run = Run.of(context, spec)
    person = Person("ada", "users complain", Owner(run.dag_id, run.run_id, run.url, run.installation))
    kept = Record.new("by-hand", model="digits", service="models/digits", version=None, started=records.now())

    def change(_: Any, __: Any, edit: Callable[[Record], None]) -> Record:
        edit(kept)
        return kept

    monkeypatch.setattr(records, "change", change)
    for _ in range(2):  # again, nothing more is taken back
        RollBackNow(task_id="roll_back", spec=spec).keep(run, person, "digits-00001 has all of the traffic")
    assert mlflow.aliases == {"champion": "5"}
    assert mlflow.outcome("7") == "rolled_back"
    assert "ada" in mlflow.tags["7"]["model_release.why"]
    assert mlflow.outcome("8") == "failed"
