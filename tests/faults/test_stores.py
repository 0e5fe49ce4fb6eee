"""Harm done to what a release reads and writes: the model store, and the numbers in Prometheus."""

from __future__ import annotations

import base64
import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.patience import until

from .models import ASKED, NAME, NAN, PATIENT, SERVICE
from .scene import Scene

pytestmark = pytest.mark.faults


def test_build_killed_and_its_store_away_and_its_upload_cut(scene: Scene) -> None:
    stable, before = scene.stable, set(scene.stored())
    one = scene.build(rollout="none")
    one.kill_task("export")
    one.until("archive", "running")
    scene.live.sandbox("stop", "s3")
    # Steps of a build on one machine share a folder, so the archive may be done without the store.
    one.until("publish", "up_for_retry")
    scene.live.sandbox("start", "s3")
    one.until("publish", "running")
    # In the midst of it, or at its very beginning: the server is killed, and started again by its supervisor.
    scene.crash("s3")
    assert one.ended() == "success"
    assert [one.tries(task) > 1 for task in ("export", "publish")] == [True, True]
    (made,) = set(scene.stored()) - before
    end = scene.end(one, stable)
    scene.row("kill -9 of the task", "build", one, stable, end)
    scene.row("S3 down", "build", one, stable, end)
    scene.row("S3 killed during an upload", "build", one, stable, end)
    # What a writer leaves that is cut off in the midst: some files, and no version.json.
    for key in ("version.json", f"model-store/{NAME}.mar"):
        scene.delete_object(made, key)
    assert scene.half_versions() == [made]
    assert made not in scene.stored()
    two = scene.release("", rollout="none")
    assert two.ended() == "success"
    assert two.record()["version"] == made
    end = scene.end(two, stable)
    scene.row("upload cut, half of a version left", "build", two, stable, end)


def test_version_that_was_changed_is_refused_before_anything_is_touched(scene: Scene) -> None:
    stable, key = scene.stable, f"model-store/{NAME}.mar"
    with _corrupted(scene, scene.other, key):
        one = scene.release()
        assert one.ended() == "failed"
    assert one.sentence().startswith("failed: task resolve failed: ")
    assert f"{key} has another SHA-256" in one.sentence()
    assert one.tries("resolve") == 1
    end = scene.end(one, stable)
    scene.row("object corrupted", "build", one, stable, end, "refused")


def test_object_corrupted_after_it_was_verified_never_becomes_a_canary(scene: Scene) -> None:
    stable, before, candidate = scene.stable, str(scene.service.rolled_out), scene.other
    one = scene.release(dag=ASKED)
    one.until("publish", "success")
    with _corrupted(scene, candidate, f"model-store/{NAME}.mar"):
        assert one.ended() == "failed"
    assert one.sentence().startswith(("failed: task stage failed: ", "failed: task smoke failed: "))
    end = scene.end(one, stable)
    assert scene.met(end.answers) <= {before, end.revision}
    scene.row("object corrupted", "stage", one, stable, end)


def test_store_away_when_the_verdict_is_to_be_recorded_and_when_it_is_promoted(scene: Scene) -> None:
    candidate = scene.other
    one = scene.release()
    one.watching()
    scene.live.sandbox("stop", "s3")
    one.until("canary", "up_for_retry")
    scene.live.sandbox("start", "s3")
    one.until("canary", "success")
    scene.live.sandbox("stop", "s3")
    one.until("promote", "up_for_retry")
    scene.live.sandbox("start", "s3")
    assert one.ended() == "success"
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate)
    scene.row("S3 down", "watch", one, candidate, end)
    scene.row("S3 down", "promote", one, candidate, end)


def test_store_away_while_rolling_back(scene: Scene) -> None:
    """The traffic does not wait for the store: only what is to be written down does."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=ASKED)
    one.watching()
    one.mark("canary", "success")
    scene.live.sandbox("stop", "s3")
    one.until("roll_back", "up_for_retry")
    assert scene.service.serving == {before: 100}
    scene.live.sandbox("start", "s3")
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: ")
    end = scene.end(one, stable)
    scene.row("S3 down", "roll back", one, stable, end)


def test_prometheus_restarted_empty_and_the_counters_reset(scene: Scene) -> None:
    candidate = scene.other
    one = scene.release(dag=PATIENT)
    one.watching()
    scene.live.sandbox("stop", "prometheus")
    shutil.rmtree(scene.live.state / "prometheus" / "data")
    scene.live.sandbox("start", "prometheus")
    time.sleep(2)
    # The gateway counts: started again, all of its counters are zero. Users are not answered meanwhile.
    scene.crash("envoy")
    assert one.ended() == "success"
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate, failing=("-",))
    counted = sum(window["canary"]["requests"] or 0 for window in one.record()["steps"][0]["windows"])
    met = sum(end.answers[end.revision].values())
    assert 0 < counted <= met, "the judge counted requests that nobody sent"
    scene.row("Prometheus restarted, empty", "watch", one, candidate, end)
    scene.row("counter reset", "watch", one, candidate, end)


def test_a_number_that_is_none_promotes_nothing(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release(dag=NAN)
    one.watching()
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: ")
    end = scene.end(one, stable)
    scene.row("Prometheus answers NaN", "watch", one, stable, end)


def test_no_traffic_at_all(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release()
    one.until("stage", "success")  # opened, it would have its evidence before a busy machine has moved the users
    scene.live.sandbox("load", "--service", "models/elsewhere")
    try:
        assert one.ended() == "failed"
    finally:
        scene.users()
    assert one.sentence().startswith("rolled_back: ")
    # Those who asked elsewhere were answered by nobody.
    end = scene.end(one, stable, failing=("-",))
    scene.row("no traffic at all", "watch", one, stable, end)


@contextmanager
def _corrupted(scene: Scene, version: str, name: str) -> Iterator[None]:
    """Other bytes under a version's name, as long as this lasts; then the right ones again."""
    store = scene.live.store(f"s3://models/{NAME}/")
    where = {"Bucket": "models", "Key": f"{NAME}/versions/{version}/{name}"}
    right = store._client.get_object(**where)["Body"].read()
    middle = len(right) // 2
    wrong = right[:middle] + bytes(byte ^ 0xFF for byte in right[middle : middle + 4096]) + right[middle + 4096 :]

    def put(content: bytes) -> None:
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        store._client.put_object(**where, Body=content, ChecksumSHA256=digest)

    put(wrong)
    try:
        yield
    finally:
        put(right)
        until(lambda: store.version(version).name == version, lambda: f"{SERVICE}: {version} is not mended")
