"""A recording that is cut, or of another version, is refused by its name; a whole one is read as it was told."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sandbox.kube import quantities, recording
from sandbox.kube.recording import BadRecording

DATA = Path(__file__).parents[2] / "data" / "real"


@pytest.fixture
def crash(tmp_path: Path) -> Path:
    for name in ("crash.json.gz", recording.INDEX):
        shutil.copy(DATA / name, tmp_path)
    return tmp_path / "crash.json.gz"


def rewrite(path: Path, change: Any) -> None:
    said = json.loads(gzip.decompress(path.read_bytes()))
    change(said)
    path.write_bytes(gzip.compress(json.dumps(said).encode()))


def test_the_file_is_cut(crash: Path) -> None:
    whole = crash.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        crash.write_bytes(whole[:length])
        with pytest.raises(BadRecording, match=r"^crash\.json\.gz: cut"):
            recording.load(crash)


def test_the_text_in_it_is_cut(crash: Path) -> None:
    text = gzip.decompress(crash.read_bytes())
    crash.write_bytes(gzip.compress(text[:-100]))
    with pytest.raises(BadRecording, match=r"^crash\.json\.gz: cut, or no JSON: "):
        recording.load(crash)


def test_events_are_cut_off(crash: Path) -> None:
    rewrite(crash, lambda said: said["events"].pop())
    with pytest.raises(BadRecording, match=r"^crash\.json\.gz: cut: 109 events, recorded\.json counts 110$"):
        recording.load(crash)


def other(number: int, **fields: Any) -> Any:
    def change(said: Any) -> None:
        said["events"][number] = {**said["events"][number], **fields}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: said.pop("events"), "no recording: an object with scenario, about and events is one"),
        (lambda said: said.pop("scenario"), "no recording: "),
        (other(1, action="sing"), "events\\[1\\]: of another version: the action 'sing' is none of write, pods, "),
        (other(1, action="note"), "events\\[1\\]: of another version: note without text"),
        (other(2, kind="Gateway"), "events\\[2\\]: of another version: MODIFIED Gateway is not known"),
        (other(2, type="BOOKMARK"), "events\\[2\\]: of another version: BOOKMARK InferenceService is not known"),
        (other(2, object={"metadata": {}}), "events\\[2\\]: of another version: no 'name' in what the watch told"),
        (
            other(2, object={"apiVersion": "serving.kserve.io/v1", "metadata": {"name": "digits"}}),
            "events\\[2\\]: of another version: the InferenceService is serving.kserve.io/v1, not ",
        ),
    ],
)
def test_the_shape_is_another(crash: Path, change: Any, words: str) -> None:
    rewrite(crash, change)
    with pytest.raises(BadRecording, match=rf"^crash\.json\.gz: {words}"):
        recording.load(crash)


def test_it_was_recorded_with_other_versions(crash: Path) -> None:
    index = crash.with_name(recording.INDEX)
    said = json.loads(index.read_text())
    said["versions"]["knative"] = "1.15"
    index.write_text(json.dumps(said))
    with pytest.raises(BadRecording, match=r"recorded\.json: recorded with .*1\.15.* expected are .*98e5ef90aa"):
        recording.load(crash)
    index.unlink()
    with pytest.raises(BadRecording, match=r"recorded\.json: not the index of recordings"):
        recording.names(crash.parent)


def test_one_that_nobody_counted_is_refused(crash: Path) -> None:
    stray = crash.rename(crash.with_name("stray.json.gz"))
    with pytest.raises(BadRecording, match=r"^stray\.json\.gz: recorded\.json beside it does not know"):
        recording.load(stray)


def test_what_the_watch_told_before_the_answer_belongs_to_the_write() -> None:
    read = recording.load(DATA / "crash-restored.json.gz")
    for step, objects in read.settled():
        if step.action == "write":
            assert objects["InferenceService", "digits"]["spec"]["predictor"].get("canaryTrafficPercent") == (
                None if step.said["said"]["percent"] == "same" else step.said["said"]["percent"]
            )


@pytest.mark.parametrize(
    ("written", "given_back"),
    [
        ("1000m", "1"), ("0.5", "500m"), ("1", "1"), ("1.5", "1500m"), ("1024Mi", "1Gi"), ("1Gi", "1Gi"), ("0", "0"),
        ("1000Mi", "1000Mi"), ("0.5Gi", "512Mi"), ("1000000k", "1G"), ("2000", "2k"), ("1e3", "1e3"), ("much", "much"),
    ],
)  # fmt: skip
def test_quantities_come_back_in_their_canonical_form(written: str, given_back: str) -> None:
    assert quantities.canonical(written) == given_back
