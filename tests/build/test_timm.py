"""timm's checkpoints: their pixels beside timm's own, their classes' names, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "include" / "handlers"))

import image_pixels

from model_release.build import original, timm_config, timm_model
from model_release.build.source import fetch, newest
from model_release.errors import CheckpointError

from . import timm_pictures

RECORDED = np.load(timm_pictures.FILE)
CONFIG = {"architecture": "test_vit", "num_classes": 3, "label_names": ["a", "b", "c"]}
PRETRAINED = {"input_size": [3, 64, 64], "crop_pct": 0.95}


def made(folder: Path, **changes: Any) -> Path:
    """A timm checkpoint, as timm pushes it to the hub."""
    config = {**CONFIG, "model_args": {"img_size": 64}, "pretrained_cfg": PRETRAINED, **changes}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    torch.manual_seed(0)
    network = timm_model.imported().create_model("test_vit", num_classes=3, img_size=64)
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", timm_pictures.CASES)
def test_handler_and_export_make_the_very_pixels_that_timm_and_torchvision_made(name: str) -> None:
    options = timm_config.options({"pretrained_cfg": timm_pictures.CASES[name]}, "x")
    for width, height in timm_pictures.SHAPES:
        shown, expected = timm_pictures.picture(width, height), RECORDED[f"{name} {width}x{height}"]
        if expected.dtype == np.uint8:
            expected = expected.astype(np.float32) / np.float32(255)
        assert np.array_equal(image_pixels.preprocess(shown, options), expected), f"handler, {width}x{height}"
        original_pixels = timm_model.EvalTransform(options)(shown)["pixel_values"][0].numpy()
        assert np.array_equal(original_pixels, expected), f"export, {width}x{height}"


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "grey": (
        {"input_size": [1, 28, 28]},
        r"pretrained_cfg.input_size \[1, 28, 28\] \(known: 3 channels, height, width",
    ),
    "oblong, cut": (
        {"input_size": [3, 20, 30]},
        r"input_size \[3, 20, 30\] \(known: a square, where crop_mode is center",
    ),
    "border": ({"crop_mode": "border"}, r"pretrained_cfg.crop_mode 'border' \(known: center, squash\)"),
    "random": ({"interpolation": "random"}, r"pretrained_cfg.interpolation 'random' \(known: nearest, "),
    "a share of nothing": ({"crop_pct": -1}, r"pretrained_cfg.crop_pct -1 \(known: from 0.5 to 2\)"),
    "a picture a million times as large": (
        {"crop_pct": 1e-6},
        r"pretrained_cfg.crop_pct 1e-06 \(known: from 0.5 to 2\)",
    ),
    "no pixel left": ({"input_size": [3, 1, 1], "crop_pct": 2}, r"input_size \[3, 1, 1\] \(known: two pixels or more"),
    "two means": ({"mean": [0.5, 0.5]}, r"pretrained_cfg.mean \[0.5, 0.5\] \(known: one number or three\)"),
    "no spread": ({"std": [0.2, 0, 0.2]}, r"pretrained_cfg.std \[0.2, 0, 0.2\] \(known: .* none of them 0\)"),
    "its own way to say a size": ({"img_size": 96}, "pretrained_cfg.img_size 96 .known: nothing; input_size says it"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_handler_cannot_do_alike_is_refused_by_its_field(name: str) -> None:
    settings, reason = UNKNOWN[name]
    with pytest.raises(CheckpointError, match=reason):
        timm_config.options({"pretrained_cfg": settings}, "x")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fetched from elsewhere": (
        {"architecture": "hf-hub:somebody/model"},
        "architecture 'hf-hub:somebody/model'; timm's is",
    ),
    "opens a file": (
        {"model_args": {"checkpoint_path": "/tmp/x.pth"}},
        "model_args.checkpoint_path, which is not taken",
    ),
    "no head": ({"num_classes": 0}, "no image classifier: config.json has num_classes 0, so test_vit has no head"),
    "arguments that are none": ({"model_args": [1]}, r"model_args \[1\]; an object would be right"),
    "a side of a million": ({"model_args": {"img_size": 1_000_000}}, "img_size 1000000; the limit for a side"),
    "a crop unknown": ({"pretrained_cfg": {"crop_mode": "border"}}, "pretrained_cfg.crop_mode 'border'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_resolve_with_nothing_left(name: str, tmp_path: Path) -> None:
    changes, reason = REFUSED[name]
    folder = made(tmp_path / "checkpoint", **changes)
    with pytest.raises(CheckpointError, match=reason):
        fetch({"directory": str(folder)}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def spoilt(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, folder / "model.safetensors")

    return spoil


UNFIT: dict[str, tuple[dict[str, Any], Callable[[Path], None], str]] = {
    "unknown": ({"architecture": "test_nothing"}, lambda _: None, r"timm 1\S+ knows no architecture 'test_nothing'"),
    "no size": ({"model_args": {"img_size": 0}}, lambda _: None, "timm cannot make the test_vit of config.json: "),
    "an argument that it has not": ({"model_args": {"wheels": 4}}, lambda _: None, "timm cannot make the test_vit"),
    "another number of labels": ({"label_names": ["a"]}, lambda _: None, r"head.bias has shape \[3\], but .* 1 labels"),
    "a part is lacking": ({}, spoilt(lambda w: w.pop("head.bias")), "the weights lack head.bias: .* random numbers"),
    "damaged": (
        {},
        lambda f: (f / "model.safetensors").write_bytes(b"x" * 64) and None,
        "model.safetensors is damaged",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_refused_by_the_export_in_one_line(name: str, tmp_path: Path) -> None:
    changes, spoil, reason = UNFIT[name]
    folder = made(tmp_path / "checkpoint", **changes)
    spoil(folder)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        original.load(folder)
    assert "\n" not in str(refusal.value)


def test_imagenets_classes_have_the_names_that_timm_gives_them(tmp_path: Path) -> None:
    folder = made(tmp_path / "checkpoint", num_classes=1000, label_names=None)
    fetched = fetch({"directory": str(folder)}, tmp_path / "x")
    assert (fetched.architecture, len(set(fetched.labels))) == ("test_vit of timm", 1000)
    assert fetched.labels[0] == "tench, Tinca tinca"
    assert [label for label in fetched.labels if label.startswith("crane")] == ["crane (134)", "crane (517)"]
    info = timm_model.imported().data.ImageNetInfo("imagenet-1k").label_descriptions()
    assert [label.removesuffix(f" ({index})") for index, label in enumerate(fetched.labels)] == info
    other = made(tmp_path / "other", label_names=None)
    assert fetch({"directory": str(other)}, tmp_path / "y").labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize("classes", [1000, 11221, 11821, 21841, 21842, 21843])
def test_each_of_imagenets_sets_is_whole(classes: int) -> None:
    assert len(timm_config.imagenet_names(classes) or ()) == classes


def test_a_candidate_without_a_processor_is_whole_if_it_is_timms(tmp_path: Path) -> None:
    folder = made(tmp_path / "candidates" / "20261122T230000")
    source = {"directory": str(folder.parent)}
    assert newest(source) is not None
    (folder / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    assert newest(source) is None


def test_torchvision_is_as_absent_as_before() -> None:
    timm_model.imported()
    assert not [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
