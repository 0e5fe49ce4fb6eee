"""Training in a process of its own: what becomes a candidate, what never does, and that nothing outlives its task."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.patience import LIMIT, until

from model_release.build import processes, training
from model_release.build.source import candidates_of, fetch
from model_release.errors import SpecError, StoreUnavailable, TrainingFailed

CANDIDATE = "20261122T230000"
PROJECT = Path(__file__).resolve().parents[2]

# A team's module. It needs nothing heavy: what makes a checkpoint releasable is in its files.
TEAM = """
import json, os, subprocess, sys, time
from pathlib import Path

CONFIG = {"architectures": ["ViTForImageClassification"], "id2label": {"0": "cat", "1": "dog"}}


def checkpoint(destination, content=b"weights"):
    (destination / "config.json").write_text(json.dumps(CONFIG))
    (destination / "preprocessor_config.json").write_text("{}")
    (destination / "model.safetensors").write_bytes(content)


def good(destination, log, *, epochs: int = 3, seed: int = 1):
    assert list(destination.iterdir()) == []
    curve = [{"epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 1 / (epoch + 1)} for epoch in range(1, epochs + 1)]
    for epoch in curve:
        log(f"epoch {epoch['epoch']}")
    print("printed by a library")
    print(json.dumps({"lr": 0.1}))
    checkpoint(destination, b"weights of seed %d" % seed)
    (destination / "optimizer.pt").write_bytes(b"not of the checkpoint")
    (destination / "learning_curve.json").write_text(json.dumps(curve))
    return {"accuracy": curve[-1]["accuracy"]}


def raises(destination, log):
    checkpoint(destination)
    raise ZeroDivisionError("no data of yesterday")


def half(destination, log):
    (destination / "config.json").write_text(json.dumps(CONFIG))
    return {}


def nan(destination, log):
    checkpoint(destination)
    return {"loss": float("nan")}


def nothing(destination, log):
    checkpoint(destination)


def dies(destination, log):
    os.kill(os.getpid(), 9)


def environment(destination, log):
    checkpoint(destination)
    log(json.dumps(sorted(os.environ)))
    return {}


def forever(destination, log, *, pids: str):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pids).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
"""


@pytest.fixture
def team(tmp_path: Path) -> Path:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "own.py").write_text(TEAM)
    return tmp_path / "team"


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def train(team: Path, tmp_path: Path, lines: list[str]) -> Callable[..., training.Trained]:
    """train("good", epochs=2) into the folder `source`."""

    def call(
        function: str, timeout: float = LIMIT, source: dict[str, str] | None = None, s3: Any = None, **arguments: Any
    ) -> training.Trained:
        return training.train(
            f"own:{function}",
            source or {"directory": "source"},
            CANDIDATE,
            arguments=arguments,
            timeout=timeout,
            base=tmp_path,
            path=[team],
            reach=lambda _: s3,
            log=lines.append,
        )

    return call


def test_a_trained_checkpoint_becomes_a_candidate_that_a_release_finds(train: Any, tmp_path: Path) -> None:
    made = train("good", epochs=4)
    found = fetch({"directory": "source"}, tmp_path / "fetched", base=tmp_path)
    assert found.candidate == made.candidate == CANDIDATE
    assert found.fingerprint == made.fingerprint
    assert made.origin == found.origin == f"directory:source/{CANDIDATE}"
    assert made.metrics == {"accuracy": 0.8}
    folder = tmp_path / "source" / CANDIDATE
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "preprocessor_config.json", "model.safetensors", "training.json", "learning_curve.png",
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "source").iterdir()] == [CANDIDATE], "nothing half-made is left"


def test_the_candidate_keeps_how_it_was_trained(train: Any, tmp_path: Path) -> None:
    made = train("good", epochs=2)
    record = json.loads((tmp_path / "source" / CANDIDATE / "training.json").read_text())
    assert record["run"] == "own:good"
    assert record["arguments"] == {"epochs": 2, "seed": 1}, "with the default that was left out"
    assert record["metrics"] == made.metrics
    assert record["fingerprint"] == made.fingerprint
    assert record["learning_curve"] == [
        {"epoch": 1, "loss": 1, "accuracy": 0.5},
        {"epoch": 2, "loss": 0.5, "accuracy": pytest.approx(2 / 3)},
    ]
    assert 0 < record["seconds"] < 60
    assert (tmp_path / "source" / CANDIDATE / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_callable_says_and_prints_is_in_the_log(train: Any, lines: list[str]) -> None:
    train("good", epochs=2)
    assert lines[:5] == [
        f'own:good trains directory:source/{CANDIDATE} with {{"epochs": 2}}',
        "epoch 1",
        "epoch 2",
        "printed by a library",
        '{"lr": 0.1}',
    ]
    assert lines[-1].startswith(f"directory:source/{CANDIDATE}: accuracy 0.6667, trained in ")


def test_run_again_the_finished_candidate_is_found_and_not_trained_again(train: Any, lines: list[str]) -> None:
    first = train("good", epochs=2)
    lines.clear()
    assert train("good", epochs=2) == first
    assert len(lines) == 1
    assert "is there already" in lines[0]


def test_a_name_taken_by_another_training_is_refused(train: Any, tmp_path: Path) -> None:
    train("good", epochs=2)
    with pytest.raises(
        TrainingFailed, match=r'made by own:good with \{"epochs": 2, "seed": 1\}; a new run gets a name'
    ):
        train("good", epochs=3)
    (tmp_path / "source" / CANDIDATE / "training.json").unlink()
    with pytest.raises(TrainingFailed, match=f"source/{CANDIDATE} is there, and no training of this project made it"):
        train("good", epochs=2)


def test_beside_a_checkpoint_no_candidate_would_count(train: Any, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    with pytest.raises(TrainingFailed, match="directory:source/ is a checkpoint itself"):
        train("good")


@pytest.mark.parametrize(
    ("function", "arguments", "told"),
    [
        ("raises", {}, "own:raises raised ZeroDivisionError: no data of yesterday"),
        ("half", {}, "left no checkpoint that can be released: directory:trained lacks preprocessor_config.json"),
        ("nan", {}, "own:nan gave loss = nan, which is no finite number"),
        ("nothing", {}, "own:nothing gave NoneType; a dict of numbers by name is right"),
        ("dies", {}, "training by own:dies was killed by signal 9"),
        ("good", {"lr": 1}, r"own:good\(destination, log.*got an unexpected keyword argument 'lr'"),
        ("missing", {}, "own has no function missing"),
    ],
)
def test_what_is_no_training_leaves_no_candidate(
    train: Any, tmp_path: Path, function: str, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(TrainingFailed, match=told):
        train(function, **arguments)
    assert not (tmp_path / "source").exists() or list((tmp_path / "source").iterdir()) == []


def test_a_module_that_is_not_there_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingFailed, match=r"no\.such:train: importing no\.such raised ModuleNotFoundError.*include/"
    ):
        training.train(
            "no.such:train", {"directory": "source"}, CANDIDATE, arguments={}, timeout=LIMIT, base=tmp_path, log=print
        )


def test_the_training_sees_nothing_of_airflow(train: Any, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    monkeypatch.setenv("AIRFLOW_CONN_MODEL_STORE", "secret")
    monkeypatch.setenv("TRAINING_DATA", "s3://images/")
    train("environment")
    names = json.loads(next(line for line in lines if line.startswith("[")))
    assert "TRAINING_DATA" in names
    assert [name for name in names if "AIRFLOW" in name] == []


def test_after_its_time_the_training_is_stopped_with_all_it_started(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WhenBothRun(threading.Timer):
        """Time is up as soon as there is something to stop."""

        def run(self) -> None:
            written(tmp_path / "pids")
            self.function()

    monkeypatch.setattr(processes, "Timer", WhenBothRun)
    with pytest.raises(TrainingFailed, match="training by own:forever took more than 7 s and was stopped"):
        train("forever", timeout=7, pids=str(tmp_path / "pids"))
    assert_gone(tmp_path / "pids")
    assert not (tmp_path / "source").exists()


def test_with_its_task_the_training_is_gone_with_all_it_started(team: Path, tmp_path: Path) -> None:
    """Airflow kills a task's process with SIGKILL, which it cannot do anything about."""
    code = (
        "from pathlib import Path; from model_release.build import training\n"
        f"training.train('own:forever', {{'directory': 'source'}}, {CANDIDATE!r}, timeout=600, log=print,"
        f" arguments={{'pids': {str(tmp_path / 'pids')!r}}}, base=Path({str(tmp_path)!r}), path=[Path({str(team)!r})])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "plugins"), "TMPDIR": str(tmp_path)}
    task = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    try:
        written(tmp_path / "pids")
    finally:
        task.send_signal(signal.SIGKILL)
        task.wait()
    assert_gone(tmp_path / "pids")
    assert not (tmp_path / "source").exists()


def written(path: Path) -> None:
    """Returns when the file has something in it."""
    until(lambda: path.is_file() and path.read_text(), f"{path} stays empty")


def assert_gone(pids: Path) -> None:
    """Both processes, soon."""
    numbers = [int(pid) for pid in pids.read_text().split()]
    assert len(numbers) == 2
    until(lambda: not any(running(pid) for pid in numbers), f"still there: {numbers}")


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def test_the_examples_training_gives_equal_bytes(tmp_path: Path) -> None:
    def digits(folder: str) -> training.Trained:
        return training.train(
            "sandbox.training:digits",
            {"directory": folder},
            CANDIDATE,
            arguments={"epochs": 1},
            timeout=LIMIT,
            base=tmp_path,
            path=[PROJECT / "include"],
            log=print,
        )

    first, again = digits("first"), digits("again")
    assert first.fingerprint == again.fingerprint
    assert first.metrics == again.metrics
    assert set(first.metrics) == {"accuracy", "loss"}
    record = json.loads((tmp_path / "first" / CANDIDATE / "training.json").read_text())
    assert record["arguments"] == {"epochs": 1, "seed": 4}
    assert record["learning_curve"] == [{"epoch": 1, **first.metrics}]


def test_candidates_are_named_by_their_moment_in_utc() -> None:
    assert training.candidate_name(datetime(2026, 11, 22, 23, 0, 7, 999, tzinfo=UTC)) == "20261122T230007"
    berlin = timezone(timedelta(hours=1))
    assert training.candidate_name(datetime(2026, 11, 23, 0, 0, tzinfo=berlin)) == CANDIDATE


def test_a_hub_repository_is_no_place_for_candidates(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="directory, s3, gcs or azure"):
        training.find({"hub": "owner/name"}, CANDIDATE, base=tmp_path)


# S3


def objects(s3: Any, prefix: str) -> set[str]:
    found = s3.client.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", [])
    return {item["Key"][len(prefix) :] for item in found}


def test_into_s3_the_config_comes_last(train: Any, s3: Any, tmp_path: Path) -> None:
    order: list[str] = []
    client = s3.other()
    client.meta.events.register(
        "before-send.s3",
        lambda request, **_: order.append(request.url.rsplit("/", 1)[1]) if request.method == "PUT" else None,
    )
    source = {"s3": "s3://models/trained/callable/"}
    made = train("good", source=source, s3=client, epochs=2)
    assert order[-1] == "config.json"
    assert set(order) == {
        "config.json", "preprocessor_config.json", "model.safetensors", "training.json", "learning_curve.png",
    }  # fmt: skip
    assert fetch(source, tmp_path / "fetched", reach=lambda _: client).fingerprint == made.fingerprint
    order.clear()
    assert train("good", source=source, s3=client, epochs=2) == made
    assert order == []


def test_into_s3_a_candidate_that_came_to_be_meanwhile_is_left_as_it_is(s3: Any, tmp_path: Path) -> None:
    place = candidates_of({"s3": "s3://models/trained/twice/"}, tmp_path, lambda _: s3.client)
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        for name in ("config.json", "model.safetensors"):
            (tmp_path / run / name).write_text(run)
    place.put(tmp_path / "one", CANDIDATE, last="config.json")
    with pytest.raises(StoreUnavailable, match="came to be meanwhile"):
        place.put(tmp_path / "two", CANDIDATE, last="config.json")
    assert place.read(f"{CANDIDATE}/model.safetensors") == b"one"


def test_what_an_image_wrote_becomes_a_candidate_once_it_is_checked(s3: Any, tmp_path: Path, lines: list[str]) -> None:
    source = {"s3": "s3://models/trained/image/"}
    destination = training.destination(source, CANDIDATE)
    assert destination == f"s3://models/trained/image/{CANDIDATE}.partial/"

    def finish() -> training.Trained:
        return training.finish(
            "team/train:1",
            source,
            CANDIDATE,
            arguments={"epochs": 2},
            seconds=61,
            log=lines.append,
            reach=lambda _: s3.client,
        )

    def put(name: str, content: str) -> None:
        key = f"trained/image/{CANDIDATE}.partial/{name}"
        s3.client.put_object(Bucket="models", Key=key, Body=content.encode())

    with pytest.raises(TrainingFailed, match=r"left no checkpoint that can be released: .*partial/"):
        finish()
    put("stale.bin", "of an earlier pod")
    training.clear_destination(source, CANDIDATE, reach=lambda _: s3.client)
    assert objects(s3, "trained/image/") == set()
    put("config.json", json.dumps({"architectures": ["ViTForImageClassification"], "id2label": {"0": "cat"}}))
    put("preprocessor_config.json", "{}")
    put("model.safetensors", "weights")
    put("metrics.json", '{"accuracy": 0.5}')
    put("learning_curve.json", '[{"epoch": 1, "loss": 2}]')
    put("optimizer.pt", "not of the checkpoint")
    made = finish()
    assert (made.metrics, made.seconds) == ({"accuracy": 0.5}, 61)
    assert objects(s3, "trained/image/") == {
        f"{CANDIDATE}/{name}"
        for name in (
            "config.json", "preprocessor_config.json", "model.safetensors", "training.json", "learning_curve.png",
        )
    }  # fmt: skip
    found = fetch(source, tmp_path / "fetched", reach=lambda _: s3.client)
    assert (found.candidate, found.fingerprint) == (CANDIDATE, made.fingerprint)
    assert finish() == made, "run again, it is found"
