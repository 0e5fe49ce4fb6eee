"""The network of a version on another device than the one it was made on. `meta` is one that every machine has: it
mixes with the CPU as little as a GPU does, and computes nothing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from model_release.build import exported, original, precision, torchscript

SIDE, META = 32, torch.device("meta")


def network(kind: str) -> torch.nn.Module:
    """Swin and BEiT make tensors of their own in each pass: masks, and tables of relative positions."""
    torch.manual_seed(0)
    if kind == "swin":
        swin = transformers.SwinConfig(
            image_size=SIDE, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
        )
        return original.Logits(transformers.SwinForImageClassification(swin).eval()).eval()
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    beit = transformers.BeitConfig(image_size=SIDE, patch_size=8, use_relative_position_bias=True, **small)
    return original.Logits(transformers.BeitForImageClassification(beit).eval()).eval()


def write(model: torch.nn.Module, artifact: str, folder: Path) -> None:
    if artifact == "torchscript":
        torchscript.trace(model, (SIDE, SIDE), folder / torchscript.FILE)
    else:
        exported.write(model, [(SIDE, SIDE)], folder / exported.FILE, any_size=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "artifact", "bits"),
    [("swin", "torchscript", None), ("beit", "torchscript", None), ("beit", "torch.export", "int8")],
)
def test_constants_move_with_the_model(kind: str, artifact: str, bits: str | None, tmp_path: Path) -> None:
    made = network(kind)
    write(precision.reduced(made, bits)[0] if bits else made, artifact, tmp_path)
    module: Any = importlib.import_module("image_model")
    pixels = torch.zeros(3, 3, SIDE, SIDE, device=META)
    moved = module.network(tmp_path, META)
    # What TorchScript's optimizer compares has no values here.
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        assert (moved(pixels).device, moved(pixels).shape[0]) == (META, 3)
    with torch.inference_mode():
        assert module.network(tmp_path, torch.device("cpu"))(torch.zeros(3, 3, SIDE, SIDE)).isfinite().all()


@pytest.mark.parametrize(
    ("logits", "sigmoid", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], False, 0.0),
        ([99.0, 0.0, 0.0, 0.0], False, 1.0),
        # Two labels share everything: half of what four could leave open.
        ([9.0, 9.0, -99.0, -99.0], False, 0.5),
        ([0.0], False, 1.0),
        ([0.0, 0.0], True, 0.0),
        ([99.0, -99.0], True, 1.0),
        # One label of two is open.
        ([0.0, 99.0], True, 0.5),
    ],
    ids=str,
)
def test_certainty_is_what_the_entropy_of_all_labels_leaves(
    logits: list[float], sigmoid: bool, expected: float
) -> None:
    module: Any = importlib.import_module("image_model")
    scores = torch.tensor([logits, logits])
    certain = module.certainties(scores.sigmoid() if sigmoid else scores.softmax(-1), sigmoid)
    assert certain == pytest.approx([expected, expected], abs=1e-5)


def test_certainty_is_of_all_labels_however_few_are_answered() -> None:
    module: Any = importlib.import_module("image_model")
    model = module.ImageModel()
    model.labels, model.sigmoid, model.device = ["cat", "dog", "cow", "hen"], False, torch.device("cpu")
    model.model = lambda batch: torch.tensor([[9.0, 9.0, -99.0, -99.0]] * len(batch))
    (best,) = model.classify([np.zeros((3, 8, 8), np.float32)], 1)
    assert [one["score"] for one in best] == [0.5]
    assert best.certainty == pytest.approx(0.5, abs=1e-5)
    assert module.certainty([best, best]) == {"0.55": 2}
