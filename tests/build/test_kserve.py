"""Runtime kserve: what torch.export makes of a model, and the layout of its version."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from model_release.build import exported as programs
from model_release.build import runtimes, torchscript, trace
from model_release.build.archive import Archive, archive, check, load
from model_release.build.evaluation.answers import run
from model_release.build.export import Export, toolchain
from model_release.errors import ArchiveError, CheckpointError
from model_release.store import files

from .conftest import HANDLER, KSERVE, ROOT, MakeCheckpoint, run_here, tiny_model
from .test_served import picture, v1

pytestmark = pytest.mark.stack


def test_the_version_holds_an_exported_program_and_says_so(program: Export, version: Archive) -> None:
    assert program.report["artifact"] == "torch.export"
    assert max(program.report["parity"]["largest_difference"].values()) <= 1e-5
    assert set(files.digests(version.directory)) == {"config/serving.json", "model-store/tiny.zip", "smoke.json"}
    said = json.loads((version.directory / "config" / "serving.json").read_text())
    built = toolchain(KSERVE)["torch"]
    assert said == {"runtime": "kserve", "service": "tiny", "artifact": "torch.export", "torch": built}
    with zipfile.ZipFile(version.file) as packed:
        assert {entry.compress_type for entry in packed.infolist()} == {zipfile.ZIP_STORED}
        assert packed.namelist() == [
            *("image_headers.py", "image_input.py", "image_model.py", "image_pixels.py", "image_requests.py"),
            *("image_slices.py", "kserve_model.py", "model.json", "model.pt2"),
        ]
        for name in packed.namelist():
            assert str(ROOT).encode() not in packed.read(name), "nothing says where it was built"


def test_equal_input_gives_equal_bytes(program: Export, version: Archive, tmp_path: Path) -> None:
    again = archive(program.directory, "tiny", KSERVE, tmp_path / "again")
    assert (again.sha256, again.size) == (version.sha256, version.size)
    assert load(again.directory, "tiny") == again
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        programs.write(Small(), [(8, 8)], tmp_path / name / programs.FILE, any_size=False)
    assert (tmp_path / "a" / programs.FILE).read_bytes() == (tmp_path / "b" / programs.FILE).read_bytes()


def test_the_two_runtimes_have_toolchains_of_their_own() -> None:
    mine, theirs = toolchain(KSERVE), toolchain(HANDLER)
    assert mine["handler"] != theirs["handler"], "so neither finds the other's versions"
    assert set(theirs) - set(mine) == {"torch-model-archiver", "response_timeout"}


class Small(torch.nn.Module):
    """Logits of any size of picture."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((-1, -2))


class Undecided(Small):
    """Its way depends on the numbers, which no graph of operators holds."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels) if bool(pixels.sum() > 0) else -super().forward(pixels)


class OfTwo(Small):
    """Its batch is fixed."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.reshape(2, 3, -1).mean(-1)


@pytest.mark.parametrize("network", [Undecided, OfTwo])
def test_a_network_that_export_cannot_take_is_refused_in_one_line(
    network: type[torch.nn.Module], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"^torch\.export cannot take the network: .+") as refused:
        programs.write(network().eval(), [(8, 8)], tmp_path / "x.pt2", any_size=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "x.pt2").exists()


def test_pictures_of_other_sizes_are_answered_where_the_network_can(tmp_path: Path) -> None:
    programs.write(Small(), [(8, 8)], tmp_path / "any.pt2", any_size=True)
    assert programs.load(tmp_path / "any.pt2")(torch.ones(1, 3, 40, 17)).tolist() == [[1.0, 1.0, 1.0]]
    model = tiny_model().eval()
    wrapped = trace.original.Logits(model).eval()
    programs.write(wrapped, [(32, 32)], tmp_path / "fixed.pt2", any_size=True)
    with pytest.raises(Exception, match=r"."):
        programs.load(tmp_path / "fixed.pt2")(torch.ones(1, 3, 40, 40))


def test_what_export_cannot_take_is_served_as_torchscript_and_said(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CheckpointError("torch.export cannot take the network: an operator")

    monkeypatch.setattr(programs, "write", refuse)
    report = run_here(make_checkpoint(), tmp_path / "x", runtime="kserve")
    assert report["artifact"] == "torchscript"
    assert report["notes"][-1] == (
        "torch.export cannot take the network: an operator; the version holds TorchScript instead"
    )
    assert (tmp_path / "x" / torchscript.FILE).exists()
    assert not (tmp_path / "x" / programs.FILE).exists()
    report = {**report, "toolchain": toolchain(KSERVE)}
    (tmp_path / "x" / "export.json").write_text(json.dumps(report))
    made = archive(tmp_path / "x", "tiny", KSERVE, tmp_path / "archive")
    check(made, tmp_path / "x")
    said = json.loads((made.directory / "config" / "serving.json").read_text())
    assert said["artifact"] == "torchscript"


def test_both_runtimes_answer_labelled_images_alike(version: Archive, packed: Archive, tmp_path: Path) -> None:
    """An evaluation compares a candidate of one with a stable version of the other."""
    images = {"a.png": picture(), "b.png": picture((40, 61), "L"), "c.png": b"no image"}
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    asked = [(name, tmp_path / name) for name in images]
    mine, theirs = (run(one.file, asked, batch=3, what="it", log=lambda _: None) for one in (version, packed))
    assert mine["c.png"].fault == theirs["c.png"].fault
    assert mine["c.png"].label is None
    for name in ("a.png", "b.png"):
        assert mine[name].label == theirs[name].label
        assert mine[name].score == pytest.approx(theirs[name].score, abs=1e-5)


def test_an_archive_that_would_fail_is_found_before_it_is_published(
    version: Archive, program: Export, tmp_path: Path
) -> None:
    shutil.copytree(version.directory, tmp_path / "x")
    expected = r"kserve_model\.py does not load .*: No module named 'transformers' in the serving image"
    with zipfile.ZipFile(version.file) as packed, zipfile.ZipFile(tmp_path / "x/model-store/tiny.zip", "w") as spoiled:
        for name in packed.namelist():
            data = packed.read(name)
            spoiled.writestr(name, data + b"\nimport transformers\n" if name == "image_headers.py" else data)
    with pytest.raises(ArchiveError, match=expected):
        check(load(tmp_path / "x", "tiny"), program.directory)


def test_what_is_said_of_batching_changes_no_archive(version: Archive, program: Export, tmp_path: Path) -> None:
    batching = {"max": 4, "within_ms": 5}
    batched = archive(program.directory, "tiny", KSERVE, tmp_path / "batched", batching=batching)
    assert json.loads((batched.directory / "config" / "serving.json").read_text())["batching"] == batching
    assert batched.sha256 == version.sha256, "so its evaluation is the same one"


@pytest.mark.parametrize(
    ("batching", "cores", "expected"),
    [
        ({"max": 4, "within_ms": 5}, 2, [4, 2]),  # as many as may
        (None, 2, [2, 2, 1, 1]),  # a picture for each CPU: the fifth request has two
        (None, 5, [4, 2]),  # the fifth would make it six pictures, and waits for the next pass
        (None, 1, [1, 1, 1, 1, 1, 1]),
        (None, 8, [6]),
    ],
    ids=str,
)
def test_requests_that_wait_go_through_the_network_together(
    batching: dict[str, int] | None, cores: int, expected: list[int], version: Archive, tmp_path: Path
) -> None:
    runtimes.kserve._stand_in()  # type: ignore[attr-defined]
    with zipfile.ZipFile(version.file) as packed:
        packed.extractall(tmp_path / "x")
    model = importlib.import_module("kserve_model").ImageClassifier("tiny", tmp_path / "x", batching)
    model.load()
    model.images.deal_out_to(cores)
    each, together = model.images.each, []
    model.images.each = lambda requests: together.append(len(requests)) or each(requests)

    two = v1(picture((9, 9)), picture(mode="1"))

    async def asked(bodies: list[bytes]) -> list[Any]:
        held = threading.Event()
        model._network.submit(held.wait)
        read = [model.read({"body": one}) for one in bodies]
        waiting = [asyncio.ensure_future(model.predict((one, 0.0))) for one in read]
        gone = asyncio.ensure_future(model.predict((read[0], 0.0)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        held.set()
        return list(await asyncio.gather(*waiting))

    bodies = [picture(), picture((40, 61), "L"), picture(mode="P"), picture((9, 9)), two, picture(mode="1")]
    answers = asyncio.run(asked(bodies))
    assert together == expected, "and for one whose client has gone nothing is done"
    for answer, body in zip(answers, bodies, strict=True):
        (alone,) = model.classified([model.read({"body": body})])[0]
        found, same = (one["predictions"] if body is two else [one] for one in (answer, alone))
        for one, other in zip(found, same, strict=True):
            assert [label["label"] for label in one] == [label["label"] for label in other]
            assert [label["score"] for label in one] == pytest.approx([label["score"] for label in other], abs=1e-5)
