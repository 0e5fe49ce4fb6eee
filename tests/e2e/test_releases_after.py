"""Releases after the story, in the same stack: an old version again, nothing new, nothing to move, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from model_release.store.clients import objects
from model_release.store.objects import address

from .conftest import Story, Told
from .witnesses import DAG

pytestmark = pytest.mark.e2e

MARK = "zebra-7341"
NOTE = f"quotes \" ' ` and {{{{ braces }}}} {{% raw %}} ${{HOME}} $(id) %(x)s <b>\n{MARK}, on a second line; '); --"


@pytest.fixture(scope="module")
def stack(live: Any, story: Story) -> Iterator[Any]:
    """The live stack after the story, with more users: verdicts come sooner."""
    live.sandbox("load", "--rate", "90")
    yield live
    live.sandbox("load", "--end")


def offer(live: Any, name: str) -> Path:
    """A copy of a trained candidate as the newest of the source."""
    target: Path = live.project / "candidates" / "digits" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    shutil.copytree(live.state / "trained" / name, target)
    return target


def release(live: Any, **form: str) -> tuple[Told, str]:
    """A run from the form, to its end, and what its report says."""
    run_id = live.airflow.trigger(DAG, form)
    run = live.finished(DAG, run_id)
    records = [record for record in live.records() if record["run"]["run_id"] == run_id]
    assert len(records) == 1
    return Told(run, live.airflow.tasks(DAG, run_id), records[0]), str(live.airflow.xcom(DAG, run_id, "report"))


def traffic(live: Any) -> tuple[Any, ...]:
    """All that must not change where no traffic is to move: the object as written, and who serves."""
    service, lease = live.service(), live.lease()
    return service.raw["metadata"]["generation"], service.template, service.serving, lease.holder, lease.frozen


def below(live: Any, folder: str) -> dict[str, tuple[str, datetime]]:
    """Every object below a folder of the store, with ETag and time."""
    store = live.store()
    where = address(store.uri)
    found = objects(store._client, where).listed(where.prefix + folder)
    return {one.key: (one.tag, one.time) for one in found}


def states(told: Told) -> dict[str, str]:
    return {name: str(task["state"]) for name, task in told.tasks.items()}


def test_what_is_stable_already_is_nothing_new(stack: Any, story: Story) -> None:
    before, stored = traffic(stack), {**below(stack, "versions/"), **below(stack, "builds/")}
    offer(stack, "better")
    told, sentence = release(stack)
    assert told.run["state"] == "success"
    assert told.record["outcome"] == "nothing_new"
    assert sentence == f"digits {story.releases['better'].record['version']}: the stable version already; nothing new."
    assert {name: states(told)[name] for name in ("export", "archive", "canary", "go_live")} == {
        "export": "skipped", "archive": "skipped", "canary": "skipped", "go_live": "skipped",
    }  # fmt: skip
    assert traffic(stack) == before
    assert {**below(stack, "versions/"), **below(stack, "builds/")} == stored, "something was uploaded"


def test_rollout_none_builds_and_publishes_and_moves_no_traffic(stack: Any) -> None:
    before, versions = traffic(stack), {version.name for version in stack.store().versions()}
    processor = offer(stack, "better") / "preprocessor_config.json"
    said = json.loads(processor.read_text())
    processor.write_text(json.dumps({**said, "image_mean": [0.49, 0.49, 0.49]}))
    told, sentence = release(stack, rollout="none")
    assert told.run["state"] == "success"
    assert told.record["outcome"] == "published"
    (made,) = {version.name for version in stack.store().versions()} - versions
    assert sentence == f"digits {made}: published; no traffic was moved."
    assert {states(told)[name] for name in ("claim", "stage", "smoke", "canary", "promote")} == {"skipped"}
    assert traffic(stack) == before


def test_a_version_that_does_not_exist_fails_with_one_line_and_moves_nothing(stack: Any) -> None:
    before, stored = traffic(stack), below(stack, "versions/")
    told, sentence = release(stack, version="0123456789abcdef")
    trouble = "s3://models/digits/versions/0123456789abcdef/ does not exist"
    _failed_in_resolve(stack, told, sentence, "VersionDamaged", trouble)
    assert traffic(stack) == before
    assert below(stack, "versions/") == stored


def test_a_checkpoint_with_pickled_weights_alone_fails_with_one_line_and_is_not_built(stack: Any) -> None:
    before, stored = traffic(stack), {**below(stack, "versions/"), **below(stack, "builds/")}
    folder = offer(stack, "better")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    told, sentence = release(stack)
    trouble = (
        f"directory:candidates/digits/{folder.name} has its weights only in pytorch_model.bin, a format that can run "
        "code when it is opened; save them as safetensors (model.save_pretrained does)"
    )
    _failed_in_resolve(stack, told, sentence, "CheckpointError", trouble)
    assert traffic(stack) == before
    assert {**below(stack, "versions/"), **below(stack, "builds/")} == stored
    shutil.rmtree(folder)


def _failed_in_resolve(live: Any, told: Told, sentence: str, kind: str, trouble: str) -> None:
    assert told.run["state"] == "failed"
    assert sentence == f"digits: task resolve failed: {trouble}"
    assert [name for name, state in states(told).items() if state == "failed"] == ["resolve", "report"]
    assert told.tasks["resolve"]["try_number"] == 1, "a refusal is not tried again"
    assert told.record["outcome"] == "failed"
    assert told.record["traffic"] == []
    told_in_log = [line for line in live.airflow.log(DAG, told.run["dag_run_id"], "resolve") if trouble in line]
    assert any(line.startswith(f"{kind}: {trouble} -- can be fixed by ") for line in told_in_log)


def test_an_older_version_is_released_again_by_canary_without_building(stack: Any, story: Story) -> None:
    """With a note that would mean something to a shell, to Jinja, to a format string, to SQL and to HTML."""
    older, stored = story.releases["first"].record["version"], below(stack, "versions/")
    before = stack.service()
    assert not before.storage_uri.endswith(f"/{older}/")
    told, sentence = release(stack, version=older, note=NOTE)
    assert told.run["state"] == "success", sentence
    assert (told.record["outcome"], told.record["version"]) == ("promoted", older)
    assert told.record["baseline"]["revision"] == before.latest_created
    assert {states(told)[name] for name in ("export", "archive", "go_live", "roll_back")} == {"skipped"}
    assert {states(told)[name] for name in ("smoke", "canary", "decide", "promote")} == {"success"}
    assert stack.service().storage_uri == f"s3://models/digits/versions/{older}/"
    assert stack.service().serving == {told.record["canary"]["revision"]: 100}
    assert stack.lease().holder is None
    assert below(stack, "versions/") == stored
    assert told.record["run"]["note"] == NOTE
    assert NOTE not in sentence
    _mark_is_nowhere_but_in(stack, told.record["release"])


def _mark_is_nowhere_but_in(live: Any, name: str) -> None:
    """Not in the cluster, not in the store beside this record, not in any log. (Airflow itself keeps the form.)"""
    assert MARK not in json.dumps([live.service().raw, live.lease().raw])
    store = live.store()
    marked = sorted(name for name in store.everything() if MARK.encode() in (store.read(name) or b""))
    assert marked == [f"releases/{name}.json", f"releases/index/{datetime.now(UTC):%Y-%m}.json"]
    logs = [*live.state.glob("logs/*"), *live.state.glob("airflow/logs/**/*.log"), *live.state.glob("kube.sqlite*")]
    assert len(logs) > 20
    assert [str(path) for path in logs if path.is_file() and MARK.encode() in path.read_bytes()] == []
