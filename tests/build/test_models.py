"""What models of the hub are like, each kind as a tiny one through a real export and back."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_release.build import export, steps, torchscript
from model_release.build.evaluation.images import from_folder
from model_release.build.source import fetch
from model_release.errors import CheckpointError, SpecError

from .conftest import HANDLER, ROOT, MakeCheckpoint, run_here


def original(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForImageClassification.from_pretrained(folder).eval()


def weights(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def setting(folder: Path, name: str, value: Any) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


def trained(folder: Path) -> None:
    """BatchNorms with statistics as training leaves them: of fresh ones, folding has nothing to do."""
    generator = torch.Generator().manual_seed(3)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)

    weights(folder, change)


@pytest.mark.parametrize(("kind", "changes"), [("siglip", {}), ("vit", {"hidden_act": "gelu_pytorch_tanh"})])
def test_tanh_gelu_is_the_same_after_the_file_is_opened_again(
    kind: str, changes: dict[str, Any], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint(kind, **changes)
    # Large enough for the two GELUs to differ.
    weights(folder, lambda tensors: [t.mul_(3) for name, t in tensors.items() if name.endswith("weight")])
    run_here(folder, tmp_path / "x")
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        expected = original(folder)(pixel_values=pixels).logits
        found = torch.jit.load(tmp_path / "x" / "model.pt")(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(expected.std())))
    with zipfile.ZipFile(tmp_path / "x" / "model.pt") as archive:
        (version,) = [name for name in archive.namelist() if name.endswith("/version")]
        assert int(archive.read(version)) >= 9, "before 9 a GELU has no tanh form"


def norms(file: Path) -> int:
    """How many BatchNorms a TorchScript file still computes."""
    return str(torch.jit.load(file).inlined_graph).count("aten::batch_norm")


def test_folding_is_asked_for_and_has_its_own_limits(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint("resnet", "convnext")
    trained(folder)
    exact = run_here(folder, tmp_path / "exact")["parity"]
    folded = run_here(folder, tmp_path / "folded", fold=True)["parity"]
    assert norms(tmp_path / "exact" / "model.pt") > 0
    assert norms(tmp_path / "folded" / "model.pt") == 0
    assert (exact["limit"], exact["probability_limit"]) == (1e-5, 1e-5)
    assert (folded["limit"], folded["probability_limit"]) == (1e-3, 1e-4)
    assert max(exact["largest_difference"].values()) <= 1e-6, "unfolded, they are the same sums"
    assert 0 < max(folded["largest_difference"].values()) <= torchscript.FOLDED.logits


def test_where_weights_lie_in_their_file_makes_no_difference(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """They are mapped into memory at any address, and a convolution of 1x1 maps (squeeze and excite) adds up in another
    order there than where a TorchScript file's weights are put: a full-size RegNet made 1 % of it."""
    import transformers

    folder = make_checkpoint("resnet", "convnext")
    torch.manual_seed(0)
    config = transformers.RegNetConfig(embedding_size=8, hidden_sizes=[256], depths=[2], groups_width=64, num_labels=3)
    transformers.RegNetForImageClassification(config).save_pretrained(folder)
    parity = run_here(folder, tmp_path / "x")["parity"]
    assert set(parity["largest_difference"].values()) == {0.0}


class Folder:
    """A store's builds in a folder: a step reads and leaves them by `stash` and `unstash`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def unstash(self, name: str, target: Path) -> None:
        shutil.copytree(self.root / name, target)

    def stash(self, name: str, source: Path) -> None:
        shutil.copytree(source, self.root / name)


def test_build_fold_goes_from_the_request_into_the_file_and_its_toolchain(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("resnet", "convnext")
    trained(folder)
    shutil.copytree(folder, tmp_path / "b1" / "checkpoint")
    toolchain = export.toolchain(HANDLER, fold=True)
    asked = steps.Request("export", "b1", "tiny", "f" * 64, toolchain, fold=True)
    assert steps.Request(**json.loads(json.dumps(asdict(asked)))) == asked
    steps.run(Folder(tmp_path), asked, ROOT, lambda _: None, lambda _: None)
    made = export.load(tmp_path / "b1" / "export")
    assert norms(made.directory / "model.pt") == 0
    assert made.report["toolchain"] == toolchain != export.toolchain(HANDLER), "another version than the unfolded one"


def test_c4_counters_of_training_steps_may_be_missing(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint("resnet", "convnext")
    counters: list[str] = []

    def without(tensors: dict[str, torch.Tensor]) -> None:
        counters.extend(name for name in tensors if name.endswith("num_batches_tracked"))
        for name in counters:
            del tensors[name]

    weights(folder, without)
    assert counters
    report = run_here(folder, tmp_path / "x")
    assert report["notes"] == [
        f"the weights lack {len(counters)} counters of training steps, which no answer depends on"
    ]
    weights(folder, lambda tensors: tensors.pop(counters[0].replace("num_batches_tracked", "running_mean")))
    with pytest.raises(CheckpointError, match=r"the weights lack \S+running_mean: these would be random numbers"):
        run_here(folder, tmp_path / "y")


def test_an_evaluation_folder_of_a_doubled_label_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    twice = make_checkpoint(id2label={"0": "crane", "1": "cat", "2": "crane"})
    labels = fetch({"directory": str(twice)}, tmp_path / "x").labels
    (tmp_path / "images" / "crane").mkdir(parents=True)
    (tmp_path / "images" / "crane" / "1.png").write_bytes(b"one")
    with pytest.raises(
        SpecError, match=r"birds has a folder crane, and 2 classes .*: crane \(0\)(,| and) crane \(2\)$"
    ):
        from_folder(tmp_path / "images", "birds", lambda _: None).check_labels(labels)
    (tmp_path / "images" / "crane").rename(tmp_path / "images" / "crane (2)")
    from_folder(tmp_path / "images", "birds", lambda _: None).check_labels(labels)


def test_a_model_that_gives_tuples_is_exported_as_if_it_did_not(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    run_here(make_checkpoint(), tmp_path / "plain")
    run_here(make_checkpoint(return_dict=False), tmp_path / "tuples")
    for name in ("model.json", "reference.json"):
        assert (tmp_path / "tuples" / name).read_text() == (tmp_path / "plain" / name).read_text()


READ_AS: dict[str, tuple[str, Any, str, Any]] = {
    "one mean for all channels": ("image_mean", 0.4, "image_mean", [0.4, 0.4, 0.4]),
    "one deviation for all channels": ("image_std", 0.25, "image_std", [0.25, 0.25, 0.25]),
    "a size as one number": ("size", 32, "size", {"height": 32, "width": 32}),
}


@pytest.mark.parametrize("case", READ_AS)
def test_settings_are_read_as_the_processor_reads_them(
    case: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    written, value, read, meant = READ_AS[case]
    folder = make_checkpoint()
    setting(folder, written, value)
    report = run_here(folder, tmp_path / "x")
    assert report["preprocessing"][read] == meant
    assert report["parity"]["largest_pixel_difference"] <= 1e-6


@pytest.mark.parametrize(("name", "value"), [("size", "32"), ("rescale_factor", None)])
def test_settings_that_the_processor_itself_cannot_read(
    name: str, value: Any, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint()
    setting(folder, name, value)
    with pytest.raises(CheckpointError, match=name) as refusal:
        run_here(folder, tmp_path / "x")
    assert "\n" not in str(refusal.value)


def test_a_nested_image_processor_is_enough_and_preferred(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """As transformers reads `processor_config.json`; the older file beside it once gave other pixels in silence."""
    folder = make_checkpoint()
    older = json.loads((folder / "preprocessor_config.json").read_text())
    nested = {"image_processor": {**older, "resample": 0}, "processor_class": "ViTProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    both = fetch({"directory": str(folder)}, tmp_path / "both")
    assert run_here(both.directory, tmp_path / "x")["preprocessing"]["resample"] == 0
    (folder / "preprocessor_config.json").unlink()
    alone = fetch({"directory": str(folder)}, tmp_path / "alone")
    assert run_here(alone.directory, tmp_path / "y")["preprocessing"]["resample"] == 0


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("DinatForImageClassification", "natten"), ("ShieldGemma2ForImageClassification", "asked in words")],
)
def test_what_cannot_be_exported_is_refused_before_its_weights_are_read(
    architecture: str, reason: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint(architectures=[architecture])
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"is a {architecture}, which cannot be exported: .*{reason}"):
        fetch({"directory": str(folder)}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_more_logits_than_labels_are_told_before_any_label_is_looked_up(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_release.build import original as ours

    monkeypatch.setattr(ours, "labels_of", lambda *_: (("only",), []))
    with pytest.raises(CheckpointError, match=r"answers with shape \[1, 3\]; 1 labels need \[1, 1\]"):
        run_here(make_checkpoint(), tmp_path / "x")


def test_an_export_without_memory_says_how_much_it_had(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration of a far larger model than the weights: 20 GB, where 2 may be had."""
    folder = make_checkpoint(intermediate_size=40_000_000)
    monkeypatch.setattr(export, "memory_limit", lambda _: 2 * 1024**3)
    with pytest.raises(
        CheckpointError, match=r"(memory ran out: the export \(it may have 2\.1 GB\)|has shape)"
    ) as told:
        export.export(folder, tmp_path / "x", handler=HANDLER, fingerprint="f" * 64)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "x").exists()
