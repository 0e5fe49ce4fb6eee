"""A timm checkpoint's network and its pixels, as timm makes them, without torchvision.

timm imports torchvision for its transforms of pictures and for data sets. It is not installed: PyPI's does not load
beside PyTorch without CUDA ("operator torchvision::nms does not exist"), transformers imports it with each of its image
processors where it is there at all, so that none of them could be imported any more, and takes it for resizing instead
of Pillow. While timm is imported here, names stand where torchvision's would, and no network uses them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from transformers.modeling_outputs import ImageClassifierOutput

from model_release.build import timm_config
from model_release.build.told import first_line
from model_release.errors import CheckpointError

# What transformers puts before the names of the weights.
_PREFIX = "timm_model."


class TimmClassifier(torch.nn.Module):
    """A network of timm, asked and answering as transformers' models are."""

    def __init__(self, network: torch.nn.Module, architecture: str, problem_type: str | None) -> None:
        super().__init__()
        self.timm_model = network
        self.architecture = architecture
        self.config = SimpleNamespace(problem_type=problem_type)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.timm_model(pixel_values))


class EvalTransform:
    """What timm's eval transform makes of one RGB picture (timm.data.transforms_imagenet_eval), with the arithmetic of
    torchvision's Resize, CenterCrop, ToTensor and Normalize for pictures of Pillow."""

    model_input_names = ("pixel_values",)

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def __call__(self, images: Image.Image, return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        size, crop = self.options["size"], (self.options["crop_size"]["width"], self.options["crop_size"]["height"])
        if edge := size.get("shortest_edge"):
            short, long = sorted(images.size)
            other = int(edge * long / short)
            wanted = (edge, other) if images.width <= images.height else (other, edge)
        else:
            wanted = (size["width"], size["height"])
        picture = images.resize(wanted, Image.Resampling(self.options["resample"]))
        if picture.width < crop[0] or picture.height < crop[1]:
            canvas = Image.new("RGB", (max(picture.width, crop[0]), max(picture.height, crop[1])))
            canvas.paste(picture, ((canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2))
            picture = canvas
        left, top = round((picture.width - crop[0]) / 2), round((picture.height - crop[1]) / 2)
        picture = picture.crop((left, top, left + crop[0], top + crop[1]))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255)
        mean, std = (torch.tensor(self.options[name])[:, None, None] for name in ("image_mean", "image_std"))
        return {"pixel_values": pixels.sub(mean).div(std)[None]}


def load(directory: Path, config: Mapping[str, Any], labels: int) -> tuple[TimmClassifier, dict[str, Any]]:
    """The network of the checkpoint in `directory` in float32, and what its weights lack or have in another shape, as
    transformers' `output_loading_info` says it.

    Raises `CheckpointError` for a network that timm does not know or cannot make so, and for damaged weights.
    """
    name, arguments = timm_config.network(config, "checkpoint")
    timm = imported()
    if not timm.is_model(name):
        raise CheckpointError(f"timm {timm.__version__} knows no architecture {name!r}, which config.json names")
    try:
        network = timm.create_model(name, pretrained=False, num_classes=labels, **arguments)
    except MemoryError:
        raise
    except Exception as error:  # whatever a network's own code makes of arguments that it does not expect
        raise CheckpointError(f"timm cannot make the {name} of config.json: {first_line(error)}") from error
    weights: dict[str, torch.Tensor] = {}
    try:
        for file in sorted(directory.glob("*.safetensors")):
            weights.update(safetensors.torch.load_file(file))
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise CheckpointError(f"model.safetensors is damaged: {first_line(error)}") from error
        raise
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
    expected = network.state_dict()
    mismatched = [
        (name, tensor.shape, expected[name].shape)
        for name, tensor in weights.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    if not mismatched:
        network.load_state_dict(weights, strict=False)
    missing = sorted(set(expected) - set(weights))
    model = TimmClassifier(network.float(), f"{name} of timm", config.get("problem_type"))
    return model, {"missing_keys": missing, "mismatched_keys": mismatched}


def imported() -> Any:
    """timm itself."""
    with _stood_in_for_torchvision():
        return importlib.import_module("timm")


@contextmanager
def _stood_in_for_torchvision() -> Iterator[None]:
    """Whatever is imported within finds the names of torchvision, and nothing behind them."""
    names = ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc", ".datasets")
    modules = {f"torchvision{name}": _Names(f"torchvision{name}") for name in names}
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, earlier in before.items():
            if earlier is None:
                del sys.modules[name]
            else:
                sys.modules[name] = earlier


class _Names(ModuleType):
    """A module that has every name: each a class of its own, which nobody makes anything of."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode":
            return Enum(name, "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
        return type(name, (), {})
