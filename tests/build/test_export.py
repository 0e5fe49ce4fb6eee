"""Real exports of tiny models, in the process that production uses."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_release.build import original, processes, torchscript
from model_release.build.export import Export, export, load, toolchain
from model_release.build.source import Checkpoint
from model_release.errors import ArchiveError, CheckpointError, ParityError
from model_release.store import files

from .conftest import HANDLER, ROOT, run_here


def run(folder: Path, output: Path, **options: Any) -> Export:
    return export(folder, output, handler=HANDLER, fingerprint="f" * 64, **options)


def test_what_an_export_leaves(exported: Export, checkpoint: Checkpoint) -> None:
    assert sorted(path.name for path in exported.directory.iterdir()) == [
        "export.json",
        "model.json",
        "model.pt",
        "reference.json",
    ]
    report = exported.report
    assert report["labels"] == ["cat", "dog", "tench, Tinca tinca"]
    assert report["input"] == {"height": 32, "width": 32}
    assert report["fingerprint"] == checkpoint.fingerprint
    assert report["toolchain"] == toolchain(HANDLER)
    assert report["notes"] == []
    assert set(report["parity"]["largest_difference"]) == {"1", "3", "8"}
    assert all(difference <= 1e-5 for difference in report["parity"]["largest_difference"].values())
    assert json.loads((exported.directory / "model.json").read_text())["preprocessing"]["size"] == report["input"]
    assert load(exported.directory) == exported


def test_weights_lie_where_torch_puts_tensors(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere a CPU's kernels add up in another order, and the differences would be taken for the export's."""

    def places() -> set[int]:
        model = original.load(checkpoint.directory)[0]
        return {tensor.data_ptr() % original._ALIGNED for tensor in (*model.parameters(), *model.buffers())}

    assert places() == {0}
    monkeypatch.setattr(original, "_settle", lambda _: None)
    assert places() != {0}, "loaded ones lie at any address of their file"


def test_equal_input_gives_equal_bytes(exported: Export, checkpoint: Checkpoint, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(checkpoint.directory, tmp_path / "another place")
    lines: list[str] = []
    again = run(elsewhere, tmp_path / "again", log=lines.append)
    assert lines == [
        "loading the checkpoint",
        "exporting ViTForImageClassification: 3 labels, input 32x32",
        "comparing with the original at batches 1, 3, 8",
    ]
    for name in ("model.pt", "model.json", "reference.json"):
        assert files.sha256(again.directory / name) == files.sha256(exported.directory / name), name


def test_nothing_of_the_exporting_machine_is_in_the_file(exported: Export) -> None:
    import transformers

    places = [str(ROOT), str(Path(transformers.__file__).parents[1]), str(Path.home()), "site-packages", ".py"]
    with zipfile.ZipFile(exported.directory / "model.pt") as archive:
        names = archive.namelist()
        content = b"".join(archive.read(name) for name in names)
    assert not [name for name in names if name.endswith(".debug_pkl")]
    assert [place for place in places if place.encode() in content] == []


def test_the_exported_model_answers_as_the_original_through_its_own_processor(
    exported: Export, checkpoint: Checkpoint
) -> None:
    """Independently of the check inside: saved file against checkpoint, on noise at an untried batch."""
    import torch
    import transformers

    original = transformers.AutoModelForImageClassification.from_pretrained(checkpoint.directory).eval()
    model = torch.jit.load(exported.directory / "model.pt")
    pixels = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        np.testing.assert_allclose(model(pixels), original(pixel_values=pixels).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "processor"), [("deit", "deit"), ("beit", "beit"), ("convnext", "convnext"), ("resnet", "bit")]
)
def test_other_architectures_and_processors(kind: str, processor: str, make_checkpoint: Any, tmp_path: Path) -> None:
    report = run_here(make_checkpoint(kind, processor), tmp_path / "x")
    assert report["input"] == {"height": 32, "width": 32}
    assert report["parity"]["largest_pixel_difference"] <= 1e-6


def test_a_processor_that_does_not_resize_is_exported_with_a_note(make_checkpoint: Any, tmp_path: Path) -> None:
    report = run_here(make_checkpoint(processor="as-cut"), tmp_path / "x")
    assert report["notes"] == ["the processor does not resize: only images of 32x32 are sure of an answer"]


def test_given_samples_are_the_reference(checkpoint: Checkpoint, exported: Export, tmp_path: Path) -> None:
    import base64

    reference = json.loads((exported.directory / "reference.json").read_text())
    (tmp_path / "sample").write_bytes(base64.b64decode(reference["instances"][1]["data"]))
    run_here(checkpoint.directory, tmp_path / "x", samples=(str(tmp_path / "sample"),))
    given = json.loads((tmp_path / "x" / "reference.json").read_text())
    assert given == {"instances": reference["instances"][1:], "expected": reference["expected"][1:]}


def test_scores_are_those_of_a_pipeline(make_checkpoint: Any, tmp_path: Path) -> None:
    import base64
    import io

    import transformers
    from PIL import Image

    for number, problem in enumerate(("single_label_classification", "multi_label_classification")):
        folder = make_checkpoint("vit", "vit", problem_type=problem)
        run_here(folder, tmp_path / str(number))
        reference = json.loads((tmp_path / str(number) / "reference.json").read_text())
        pipeline = transformers.pipeline("image-classification", str(folder))
        images = [Image.open(io.BytesIO(base64.b64decode(i["data"]))) for i in reference["instances"]]
        for answers, expected in zip(pipeline(images), reference["expected"], strict=True):
            assert answers[0]["label"] == expected["label"]
            assert answers[0]["score"] == pytest.approx(expected["score"], abs=1e-5)


def weights(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def processor(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**content, **changes}))


def five_labels(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): f"label {index}" for index in range(5)}
    (folder / "config.json").write_text(json.dumps(config))


REFUSED: dict[str, tuple[Any, str]] = {
    "labels that do not match the head": (
        five_labels,
        r"classifier\.\w+ has shape \[3.*\], but config.json \(with 5 labels\) needs \[5",
    ),
    "a head that is missing": (
        lambda f: weights(f, lambda t: (t.pop("classifier.weight"), t.pop("classifier.bias"))),
        "the weights lack classifier.bias, classifier.weight: these would be random numbers",
    ),
    "damaged weights": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{damaged}"),
        "model.safetensors is damaged|cannot load the checkpoint",
    ),
    "a size that the model does not take": (
        lambda f: processor(f, size={"height": 40, "width": 40}),
        "the original model cannot answer an input of 40x40: .*40.*32",
    ),
    "a processor of unknown kind": (
        lambda f: processor(f, image_processor_type="NoSuchProcessor"),
        "cannot load preprocessor_config.json",
    ),
    "an option that the handler lacks": (
        lambda f: processor(f, do_pad=True, pad_size={"height": 64, "width": 64}),
        "cannot reproduce ViTImageProcessor's do_pad=True with pad_size",
    ),
    "images that keep their shape": (
        lambda f: processor(f, size={"shortest_edge": 32}),
        r"the original model cannot answer an input of 42x32",
    ),
    "unknown architecture": (
        lambda f: (f / "config.json").write_text(
            json.dumps({"model_type": "nope", "architectures": ["NopeForImageClassification"]})
        ),
        "cannot load the checkpoint: .*nope",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_line(name: str, make_checkpoint: Any, tmp_path: Path) -> None:
    spoil, reason = REFUSED[name]
    folder = make_checkpoint()
    spoil(folder)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        run_here(folder, tmp_path / "x")
    assert "\n" not in str(refusal.value)


def test_a_refusal_comes_out_of_its_process_as_itself_and_nothing_is_left(make_checkpoint: Any, tmp_path: Path) -> None:
    folder = make_checkpoint()
    five_labels(folder)
    with pytest.raises(CheckpointError, match=r"^the weights' classifier.* needs \[5.*\]$"):
        run(folder, tmp_path / "work" / "x")
    assert list((tmp_path / "work").iterdir()) == []


class Shifted(torch.nn.Module):
    """Logits are the mean of each channel, and an offset for the first."""

    def __init__(self, offset: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        self.shift, self.spread = torch.tensor([offset, 0.0, 0.0]), spread

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((-1, -2)) * self.spread + self.shift


SMALL = [(4, 4)]


def test_parity_beyond_the_limit_is_refused_with_figures(tmp_path: Path) -> None:
    """The check itself, on a file that is not the model's."""
    expected = torchscript.answers(Shifted(), SMALL, 3)
    torchscript.trace(Shifted(), SMALL[0], tmp_path / "model.pt")
    found = torchscript.parity(expected, tmp_path / "model.pt", SMALL, "softmax", torchscript.EXACT)
    assert set(found["largest_difference"].values()) == {found["largest_probability_difference"]} == {0.0}
    torchscript.trace(Shifted(2e-5), SMALL[0], tmp_path / "model.pt")
    sentence = (
        r"by 2e-05 at batch 1, .* at batch 8 of their spread \(1\), probabilities by .*; the limits are 1e-05 and"
    )
    with pytest.raises(ParityError, match=sentence):
        torchscript.parity(expected, tmp_path / "model.pt", SMALL, "softmax", torchscript.EXACT)
    torchscript.parity(expected, tmp_path / "model.pt", SMALL, "softmax", torchscript.FOLDED)
    with pytest.raises(CheckpointError, match=r"answers with shape \[1, 3\]; 7 labels need \[1, 7\]"):
        torchscript.answers(Shifted(), SMALL, 7)


def test_parity_of_large_logits_is_relative_and_probabilities_have_their_own_limit(tmp_path: Path) -> None:
    """A hundred times the spread is a hundred times the grain of float32; but no probability may move by it."""
    expected = torchscript.answers(Shifted(spread=100), SMALL, 3)
    torchscript.trace(Shifted(1.5e-5, spread=100), SMALL[0], tmp_path / "model.pt")
    found = torchscript.parity(expected, tmp_path / "model.pt", SMALL, "softmax", torchscript.EXACT)
    assert found["spread"] > 10
    torchscript.trace(Shifted(1e-4, spread=100), SMALL[0], tmp_path / "model.pt")
    with pytest.raises(ParityError, match="probabilities by"):
        torchscript.parity(expected, tmp_path / "model.pt", SMALL, "sigmoid", torchscript.EXACT)


def test_nan_has_its_own_sentence(make_checkpoint: Any, tmp_path: Path) -> None:
    nan = float("nan")
    with pytest.raises(CheckpointError, match=r"original model answers with NaN or infinity \(batch 1\)"):
        torchscript.answers(Shifted(nan), SMALL, 3)
    torchscript.trace(Shifted(nan), SMALL[0], tmp_path / "model.pt")
    expected = torchscript.answers(Shifted(), SMALL, 3)
    with pytest.raises(ParityError, match=r"answers batch 1 with NaN or infinity; the original's answers are numbers"):
        torchscript.parity(expected, tmp_path / "model.pt", SMALL, "softmax", torchscript.EXACT)
    folder = make_checkpoint()
    weights(folder, lambda tensors: tensors["classifier.bias"].fill_(nan))
    with pytest.raises(CheckpointError, match=r"the weights' classifier\.bias has NaN"):
        run_here(folder, tmp_path / "x")


def test_a_file_that_cannot_be_opened_again_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"damaged")
    with pytest.raises(ParityError, match=r"^the exported model cannot be opened again: [^\n]*$"):
        torchscript.parity({}, tmp_path / "model.pt", SMALL, "softmax", torchscript.EXACT)


def test_a_model_whose_batch_was_recorded_fails_parity(tmp_path: Path) -> None:
    class TwoOnly(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> Any:
            return pixels.reshape(len(pixels.tolist()), -1)[:, :3]

    torchscript.trace(TwoOnly(), SMALL[0], tmp_path / "model.pt")
    expected = torchscript.answers(TwoOnly(), SMALL, 3)
    with pytest.raises(ParityError, match=r"fails at batch 1 of 4x4 \(traced at 2\)|answers batch 1 with shape"):
        torchscript.parity(expected, tmp_path / "model.pt", SMALL, "softmax", torchscript.EXACT)


def test_a_warning_that_is_not_known_is_shown(tmp_path: Path) -> None:
    program = (
        "import warnings, torch; from model_release.build import trace\n"
        "with trace._known_warnings_filtered():\n"
        "    warnings.warn('`torch.jit.trace` is deprecated. Please switch', DeprecationWarning)\n"
        "    warnings.warn('the result might not generalize', torch.jit.TracerWarning)\n"
    )
    done = subprocess.run(
        [processes.sys.executable, "-W", "always", "-c", program],
        capture_output=True,
        text=True,
        env=processes.environment(PYTHONPATH=str(processes.PACKAGE_ROOT)),
        check=True,
    )
    assert "might not generalize" in done.stderr
    assert "deprecated" not in done.stderr


def test_toolchain_changes_with_the_handler(tmp_path: Path) -> None:
    for module in HANDLER.parent.glob("*.py"):
        shutil.copy(module, tmp_path)
    copied = tmp_path / "image_classifier.py"
    assert toolchain(copied) == toolchain(HANDLER)
    (tmp_path / "image_input.py").write_text("changed")
    assert toolchain(copied)["handler"] != toolchain(HANDLER)["handler"]
    with pytest.raises(ArchiveError, match="is no handler"):
        toolchain(tmp_path / "absent.py")


def test_no_export_is_loaded_from_where_none_is(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="holds no finished export"):
        load(tmp_path)
