"""The steps of a build as a pod does them: a real process, with nothing but the store and its request's address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model_release import model_file
from model_release.build import steps
from model_release.build.archive import Archive
from model_release.build.evaluate import summary
from model_release.build.export import load, toolchain
from model_release.build.source import Checkpoint
from model_release.build.steps import Request, answered, ask
from model_release.errors import ArchiveError, CheckpointError, SpecError, StoreUnavailable
from model_release.spec import ModelSpec
from model_release.store.store import Store

from .conftest import HANDLER, LABELS, ROOT, S3

TOOLCHAIN = toolchain(HANDLER)


@pytest.fixture
def store(s3: S3) -> Store:
    return Store(s3.client, f"s3://models/pods-{uuid.uuid4().hex[:8]}/")


def in_a_pod(store: Store, s3: S3, request: Request) -> subprocess.CompletedProcess[str]:
    """The command of `tasks/pods.py`, with what a pod has of an environment."""
    connection = {"conn_type": "aws", "login": "key", "password": "secret",
                  "extra": {"endpoint_url": s3.endpoint, "region_name": "us-east-1"}}  # fmt: skip
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "plugins"), "OMP_NUM_THREADS": "1",
            "AIRFLOW_CONN_MODEL_STORE": json.dumps(connection)}  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "model_release.commands.build_step",
        "--store",
        store.uri,
        "--request",
        request.key,
    ]
    return subprocess.run(command, env=bare, capture_output=True, text=True, check=False)


def test_export_archive_and_evaluation_pass_by_the_store_alone(store: Store, s3: S3, checkpoint: Checkpoint) -> None:
    store.stash("b1/checkpoint", checkpoint.directory)
    request = Request("export", "b1", "tiny", checkpoint.fingerprint, TOOLCHAIN)
    ask(store, request)
    assert answered(store, request) is None, "nothing has come yet"
    done = in_a_pod(store, s3, request)
    assert done.returncode == 0, done.stderr
    assert "comparing with the original at batches 1, 3, 8" in done.stdout
    parity = (answered(store, request) or {})["parity"]
    assert set(parity["largest_difference"]) == {"1", "3", "8"}

    request = Request("archive", "b1", "tiny", checkpoint.fingerprint, TOOLCHAIN)
    ask(store, request)
    done = in_a_pod(store, s3, request)
    assert done.returncode == 0, done.stderr
    packed = answered(store, request) or {}
    assert packed["size"] > 1000
    assert len(packed["sha256"]) == 64

    for number, label in enumerate(("cat", "dog")):
        for turn in range(3):
            _image(s3, f"{store.uri.removeprefix('s3://models/')}images/{label}/{turn}.png", number * 10 + turn)
    request = Request(
        "evaluate", "b1", "tiny",
        evaluation={"data": f"{store.uri}images/", "batch": 4},
        no_stable="nothing is live yet",
        picture="releases/r1.confusion.png",
    )  # fmt: skip
    ask(store, request)
    done = in_a_pod(store, s3, request)
    assert done.returncode == 0, done.stderr
    found = answered(store, request) or {}
    assert found["data"]["images"] == 6
    assert found["candidate"]["labels"] == list(LABELS)
    assert found["comparison"]["skipped"] == "nothing is live yet"
    assert _bytes(s3, store, "releases/r1.confusion.png").startswith(b"\x89PNG")


@pytest.mark.walk
def test_int8_is_held_to_the_archive_that_a_release_in_float32_would_have(
    store: Store, s3: S3, checkpoint: Checkpoint, packed: Archive, tmp_path: Path
) -> None:
    store.stash("b9/checkpoint", checkpoint.directory)
    asked: dict[str, Any] = {"fingerprint": checkpoint.fingerprint, "precision": "int8"}
    run = partial(steps.run, root=ROOT, reach=lambda _: s3.client, log=lambda _: None)
    said = run(store, Request("export", "b9", "tiny", **asked))
    assert said["parity"]["beside_float32"]["pictures"] == 12
    made = run(store, Request("archive", "b9", "tiny", **asked))
    for number, label in enumerate(("cat", "dog")):
        _image(s3, f"{store.uri.removeprefix('s3://models/')}images/{label}/0.png", number)
    evaluation = {"data": f"{store.uri}images/", "max_regressions": 0.9}
    request = Request(
        "evaluate", "b9", "tiny", evaluation=evaluation, no_stable="nothing is live", picture="x", **asked
    )
    found = run(store, request)
    assert found["float32"]["archive"] == packed.sha256 != made["sha256"]
    assert found["float32"]["skipped"] is None
    assert [gate["name"] for gate in found["gates"]] == ["regressions", "regressions beside float32"]

    store.unstash("b9/archive", tmp_path / "archive")
    store.unstash("b9/export", tmp_path / "export")
    about = {"service": "tiny", "source": {}, "evaluation": summary(found)}
    version = store.publish(tmp_path / "archive", {**load(tmp_path / "export").report, **about})
    assert version.metadata["precision"] == "int8"
    again = replace(request, build=version.name, version=version.name, precision="float32")
    assert run(store, again)["float32"] == found["float32"], "of the version, whatever the model file says now"
    _image(s3, f"{store.uri.removeprefix('s3://models/')}images/dog/1.png", 7)
    assert run(store, again)["float32"]["skipped"].endswith(
        "was built without these images, and its checkpoint is gone"
    )


def test_a_pod_makes_the_same_bytes_as_a_worker(
    store: Store, s3: S3, checkpoint: Checkpoint, exported: Any, tmp_path: Path
) -> None:
    store.stash("b2/checkpoint", checkpoint.directory)
    request = Request("export", "b2", "tiny", checkpoint.fingerprint, TOOLCHAIN)
    ask(store, request)
    assert in_a_pod(store, s3, request).returncode == 0
    store.unstash("b2/export", tmp_path / "export")
    names = sorted(path.name for path in exported.directory.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "export").iterdir())
    for name in names:  # two runs may build it side by side, and one read what the other leaves
        assert (tmp_path / "export" / name).read_bytes() == (exported.directory / name).read_bytes(), name
    assert load(tmp_path / "export").report["fingerprint"] == checkpoint.fingerprint


def test_a_refusal_comes_back_as_what_it_is(store: Store, s3: S3, checkpoint: Checkpoint, tmp_path: Path) -> None:
    for file in checkpoint.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not what it says")
    store.stash("b3/checkpoint", tmp_path)
    request = Request("export", "b3", "tiny", checkpoint.fingerprint, TOOLCHAIN)
    ask(store, request)
    done = in_a_pod(store, s3, request)
    assert done.returncode == 1
    assert done.stderr.startswith("CheckpointError: ")
    with pytest.raises(CheckpointError) as told:
        answered(store, request)
    assert str(told.value) in done.stderr
    ask(store, request)
    assert answered(store, request) is None, "asked anew, the old error is none of it"


def test_an_image_with_other_packages_is_refused(store: Store, s3: S3) -> None:
    request = Request("export", "b4", "tiny", "f" * 64, {**TOOLCHAIN, "torch": "1.13.0+cu117"})
    ask(store, request)
    done = in_a_pod(store, s3, request)
    assert done.returncode == 1
    with pytest.raises(ArchiveError, match=r"this image is not the worker's: torch .* here and 1\.13\.0\+cu117 there"):
        answered(store, request)


def test_the_local_label_of_a_build_is_no_other_toolchain() -> None:
    steps._check_toolchain({**TOOLCHAIN, "torch": TOOLCHAIN["torch"].split("+")[0] + "+cu126"}, HANDLER)


def test_what_a_model_file_asks_for_is_another_version_and_no_other_machine() -> None:
    content = model_file.load(ROOT / "include" / "models" / "digits.yaml").model_dump(mode="json", exclude_none=True)
    service = {**content["service"], "timeout": "5m", "batching": {"max": 8, "within": "5ms"}}
    spec = ModelSpec.model_validate({**content, "service": service, "build": {"precision": "int8"}})
    batching = {"max": 8, "within_ms": 5}
    assert steps.asked_of(spec) == {
        "fold": False,
        "precision": "int8",
        "response_timeout": 300,
        "batching": batching,
    }
    asked = toolchain(HANDLER, **steps.asked_of(spec))
    assert {name: value for name, value in asked.items() if TOOLCHAIN.get(name) != value} == {
        "precision": "int8",
        "response_timeout": "300",
        "batching": "8 within 5 ms",
    }
    steps._check_toolchain(asked, HANDLER)


def test_a_request_of_another_run_is_not_answered_for(store: Store) -> None:
    mine, theirs = Request("archive", "b5", "tiny", "a"), Request("archive", "b5", "tiny", "b")
    ask(store, theirs)
    with pytest.raises(ArchiveError, match="another run's request"):
        answered(store, mine)
    assert answered(store, Request("archive", "never", "tiny")) is None


def test_a_pod_that_was_replaced_leaves_no_result(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("archive", "b6", "tiny", "a")
    ask(store, request)

    def slow(*_: Any) -> dict[str, Any]:
        ask(store, Request("archive", "b6", "tiny", "b"))
        return {"sha256": "0", "size": 1}

    monkeypatch.setattr(steps, "run", slow)
    with pytest.raises(StoreUnavailable):
        steps.answer(store, request.key, ROOT, lambda _: None, print)
    assert answered(store, Request("archive", "b6", "tiny", "b")) is None


@pytest.mark.parametrize("content", [{"request": {"step": "export"}}, {}, {"request": {"shell": "rm"}}])
def test_what_is_no_request_is_refused(store: Store, content: dict[str, Any]) -> None:
    store.write_json("builds/b7/export.request.json", content, if_match=None)
    with pytest.raises(SpecError, match="is no request of this project"):
        steps.answer(store, "builds/b7/export.request.json", ROOT, lambda _: None, print)


def _image(s3: S3, key: str, seed: int) -> None:
    import io

    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    s3.client.put_object(Bucket="models", Key=key, Body=buffer.getvalue())


def _bytes(s3: S3, store: Store, key: str) -> bytes:
    prefix = store.uri.removeprefix("s3://models/")
    return bytes(s3.client.get_object(Bucket="models", Key=prefix + key)["Body"].read())
