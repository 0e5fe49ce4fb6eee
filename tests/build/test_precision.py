"""A network in fewer bits: what it answers, what is said of it, and that both runtimes hold it."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model_release.build import precision, runtimes, torchscript
from model_release.build.archive import archive, check
from model_release.build.export import toolchain
from model_release.errors import CheckpointError

from .conftest import HANDLER, ROOT, MakeCheckpoint, run_here

ARTIFACT = {"torchserve": "torchscript", "kserve": "torch.export"}


def scaled(folder: Path) -> Path:
    """The checkpoint with a classifier that is sure of itself, as a trained one is."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"] *= 40
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def trained(make_checkpoint: MakeCheckpoint) -> Path:
    return scaled(make_checkpoint())


@pytest.fixture(scope="module")
def exact(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("exact") / "x"
    return run_here(trained, folder), folder


@pytest.mark.parametrize(("runtime", "bits"), [("torchserve", "int8"), ("kserve", "int8"), ("kserve", "bfloat16")])
def test_the_file_is_held_to_its_own_network_and_its_distance_from_float32_is_told(
    trained: Path, exact: tuple[dict[str, Any], Path], tmp_path: Path, runtime: str, bits: str
) -> None:
    whole, folder = exact
    report = run_here(trained, tmp_path / "x", runtime=runtime, precision=bits)
    assert (whole["precision"], report["precision"]) == ("float32", bits)
    assert report["artifact"] == ARTIFACT[runtime], "no falling back"
    assert "beside_float32" not in whole["parity"]
    assert max(report["parity"]["largest_difference"].values()) <= 1e-5
    beside = report["parity"]["beside_float32"]
    assert beside["pictures"] == 12
    assert 1e-5 < beside["largest_probability_difference"] < 0.05, "other numbers, and near"
    assert 0 <= beside["labels_changed"] <= 0.25
    assert f"{beside['largest_probability_difference']:.2g}" in report["notes"][-1]
    described = json.loads((tmp_path / "x" / "model.json").read_text())
    assert described == {**json.loads((folder / "model.json").read_text()), "precision": bits}
    if bits == "int8":
        handler = runtimes.handler(ROOT, runtime)
        (tmp_path / "x" / "export.json").write_text(json.dumps({**report, "toolchain": toolchain(handler)}))
        made = archive(tmp_path / "x", "tiny", handler, tmp_path / "archive")
        smoke = check(made, tmp_path / "x")
        assert smoke["tolerance"] == precision.TOLERANCE
        original = json.loads((folder / "reference.json").read_text())["expected"]
        assert [one["score"] for one in smoke["expected"]] != [one["score"] for one in original]


def test_int8_is_the_product_of_whole_numbers_and_knows_no_other_row() -> None:
    linear = torch.nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[127.0, -127, 0, 1], [1.27, 0, -1.27, 0], [0, 0, 0, 0]]))
        linear.bias.copy_(torch.tensor([0.0, 1, 2]))
    int8 = precision.Int8Linear(linear)
    rows = torch.tensor([[127.0, 1, 0, -5], [0, 0, 0, 0], [0.127, 0.064, 0, 0]])
    torch.testing.assert_close(int8(rows)[:2], linear(rows)[:2], rtol=1e-6, atol=1e-4)
    assert int8(rows).tolist() == [int8(row[None])[0].tolist() for row in rows]
    assert int8(rows[None, :, :]).shape == (1, 3, 3)
    noise = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    assert (int8(noise) - linear(noise)).abs().max() < 4 * 127 * noise.abs().max() / 127


class Convolution(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Conv2d(3, 2, 8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels).flatten(1)


class OfItsOwnType(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(3, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels.mean((-1, -2)).to(self.model.weight.dtype))


def test_what_cannot_be_in_it_is_refused_in_one_line() -> None:
    with pytest.raises(CheckpointError, match="int8 is for Linear layers, and this network has none; bfloat16 or"):
        precision.reduced(Convolution(), "int8")
    network, said = precision.reduced(OfItsOwnType(), "int8")
    assert said == "1 Linear layers are in int8: 75 % of the weights; the rest is in float32"
    with pytest.raises(
        CheckpointError, match=r"^build\.precision int8: the network does not run in it: .*weight.*"
    ) as no:
        precision.answers(network, lambda one: torchscript.answers(one, [(8, 8)], 2), "int8")
    assert "\n" not in str(no.value)


def test_what_the_other_precision_changed_is_counted() -> None:
    exact = {(2, (8, 8)): torch.tensor([[2.0, 0], [0, 2]]), (1, (8, 8)): torch.tensor([[1.0, 0]])}
    found = {(2, (8, 8)): torch.tensor([[2.0, 0], [2, 0]]), (1, (8, 8)): torch.tensor([[1.0, 0]])}
    told = precision.compared(exact, found, "softmax")
    assert (told["labels_changed"], told["pictures"]) == (pytest.approx(1 / 3), 3)
    assert told["largest_probability_difference"] == pytest.approx(float(torch.tensor([2.0, 0]).softmax(0)[0]) * 2 - 1)


def test_another_precision_is_another_version() -> None:
    plain = toolchain(HANDLER)
    assert toolchain(HANDLER, precision="float32") == plain
    assert toolchain(HANDLER, precision="int8") == {**plain, "precision": "int8"}


@pytest.mark.parametrize(
    ("bits", "there", "said"),
    [
        ("bfloat16", {"avx2": True, "avx512_bf16": True}, None),
        ("bfloat16", {"avx2": True, "avx512_vnni": True}, "in bfloat16, for which this CPU has none of avx512_bf16, "),
        ("int8", {"avx_vnni": True}, None),
        ("int8", {"dot": True, "neon": True}, None),
        ("int8", {"avx2": True}, "in int8, for which this CPU has none of avx512_vnni, "),
        ("float32", {}, None),
    ],
)
def test_a_cpu_without_instructions_for_it_is_told_in_one_line(
    bits: str, there: dict[str, bool], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = str(ROOT / "include" / "handlers")
    monkeypatch.syspath_prepend(handlers)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: there)
    told = importlib.import_module("image_model").lacks(bits)
    assert told is None if said is None else said in told and "\n" not in told


def test_the_server_says_it_when_it_loads(
    exact: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(exact[1], tmp_path / "x")
    described = json.loads((tmp_path / "x" / "model.json").read_text())
    (tmp_path / "x" / "model.json").write_text(json.dumps({**described, "precision": "int8"}))
    monkeypatch.syspath_prepend(str(ROOT / "include" / "handlers"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    model: Any = importlib.import_module("image_model").ImageModel()
    with caplog.at_level(logging.WARNING):
        model.open(tmp_path / "x", "tiny", "1.0")
    assert "the network is in int8, for which this CPU has none of" in caplog.text
