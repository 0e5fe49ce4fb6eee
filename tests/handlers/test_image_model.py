"""The network of a version on another device than the one it was made on. `meta` is one that every machine has: it
mixes with the CPU as little as a GPU does, and computes nothing."""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Callable
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


class Network:
    """A network of one number a picture; `seen` has each pass: its pictures, its thread and how many torch gave it."""

    def __init__(self, *, bad: float | None = None) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self.bad, self.together = bad, threading.Barrier(1)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.together.wait(60)
        self.seen.append((len(batch), threading.get_ident(), torch.get_num_threads()))
        if self.bad is not None and (batch[:, 0, 0, 0] == self.bad).any():
            raise RuntimeError("it cannot take this one")
        return torch.stack([batch[:, 0, 0, 0], torch.zeros(len(batch))], dim=1)


def asked(network: Callable[[torch.Tensor], torch.Tensor], cores: int, pictures: int) -> list[float]:
    """The probability of each picture's first label, with a network on so many CPUs. Picture n is n / 100 all over."""
    module: Any = importlib.import_module("image_model")
    model = module.ImageModel()
    model.labels, model.sigmoid, model.device, model.model = ["a", "b"], True, torch.device("cpu"), network
    model.preprocessing, model.input_size = {"do_resize": True}, (8, 8)
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        model.deal_out_to(cores)
        answers = model.classify([np.full((3, 8, 8), n / 100, np.float32) for n in range(pictures)], 2)
        assert torch.get_num_threads() == cores, "who asks keeps all"
    finally:
        torch.set_num_threads(before)
    return [one["score"] for labels in answers for one in labels if one["label"] == "a"]


@pytest.mark.parametrize(
    ("cores", "pictures", "parts", "threads"),
    [
        (1, 1, [1], 1),
        (1, 3, [3], 1),
        (4, 1, [1], 4),
        (4, 2, [1, 1], 2),
        (4, 3, [1, 1, 1], 1),
        (3, 8, [3, 3, 2], 1),
        (2, 130, [32, 32, 32, 32, 1, 1], 1),  # no more than 64 at once
        (1, 65, [64, 1], 1),
    ],
)
def test_pictures_are_dealt_out_to_cpus(cores: int, pictures: int, parts: list[int], threads: int) -> None:
    network = Network()
    scores = asked(network, cores, pictures)
    assert sorted(size for size, _, _ in network.seen) == sorted(parts)
    assert {given for _, _, given in network.seen} == {threads}
    assert scores == pytest.approx([1 / (1 + math.exp(-n / 100)) for n in range(pictures)], abs=1e-6), "in order"


def test_cpus_work_at_the_same_time() -> None:
    network = Network()
    network.together = threading.Barrier(3)  # raises unless three are in it at once
    asked(network, 3, 3)
    assert len({thread for _, thread, _ in network.seen}) == 3


def test_one_that_fails_is_told_when_the_others_are_done() -> None:
    """What is asked next would find their CPUs taken."""
    network, failed = Network(bad=0.0), threading.Event()
    answer = network.__call__

    def slow(batch: torch.Tensor) -> torch.Tensor:
        try:
            return answer(batch)
        except RuntimeError:
            threading.Timer(0.2, failed.set).start()
            raise
        finally:
            if network.bad not in batch[:, 0, 0, 0]:
                failed.wait(60)
                done.append(len(batch))

    done: list[int] = []
    with pytest.raises(RuntimeError, match="it cannot take this one"):
        asked(slow, 3, 6)
    assert done == [2, 2]
