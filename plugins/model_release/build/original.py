"""The checkpoint's own model and its answers: what an export is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from model_release.build import timm_config, timm_model
from model_release.build.inspection import read_json
from model_release.build.labels import CONFIG, labels_of
from model_release.build.told import first_line
from model_release.errors import CheckpointError

#: Bytes; where torch's allocator for CPUs lets a tensor begin (c10/core/alignment.h, gAlignment).
_ALIGNED = 64


class Logits(torch.nn.Module):
    """The model as TorchScript needs it: a tensor of pixels in, a tensor out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return logits_of(self.model(pixel_values=pixel_values))


class PaletteLogits(torch.nn.Module):
    """ImageGPT: pixels become the numbers of the nearest colours, in the order and precision of its processor."""

    def __init__(self, model: torch.nn.Module, clusters: Any) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("clusters", torch.as_tensor(clusters, dtype=torch.float64))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        colours = pixel_values.permute(0, 2, 3, 1).reshape(pixel_values.shape[0], -1, 3).double()
        squares = colours.square().sum(-1, keepdim=True)
        distances = squares - 2 * (colours @ self.clusters.T) + self.clusters.square().sum(-1)
        return logits_of(self.model(input_ids=distances.argmin(-1)))


class PatchLogits(torch.nn.Module):
    """SigLIP2 (naflex): pixels, in whole patches, become a row of them. All pictures of a batch have one shape here, so
    none is padded, and the positions are drawn to that shape once."""

    def __init__(self, model: torch.nn.Module, side: int) -> None:
        super().__init__()
        self.model, self.side = model, side
        embeddings: Any = model.vision_model.embeddings
        theirs = embeddings.resize_positional_embeddings

        def resized(positions: torch.Tensor, shapes: Any, max_length: int) -> torch.Tensor:
            if isinstance(shapes, torch.Tensor):
                whole: torch.Tensor = theirs(positions, shapes, max_length=max_length)
                return whole
            drawn = torch.nn.functional.interpolate(
                positions.permute(2, 0, 1)[None], size=shapes, mode="bilinear", align_corners=False, antialias=True
            )
            return drawn.flatten(2).transpose(1, 2)

        embeddings.resize_positional_embeddings = resized

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        count, side = pixel_values.shape[0], self.side
        rows, columns = pixel_values.shape[2] // side, pixel_values.shape[3] // side
        patches = pixel_values.reshape(count, 3, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        row = patches.reshape(count, rows * columns, side * side * 3)
        return logits_of(self.model(pixel_values=row, spatial_shapes=(rows, columns)))


def logits_of(output: Any) -> torch.Tensor:
    """A classifier's logits; PP-LCNet calls them its last hidden state."""
    logits: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
    return logits


def wrapped(model: Any, processor: Any) -> torch.nn.Module:
    """The model behind its processor's last step, where that is no matter of pixels."""
    if getattr(processor, "do_color_quantize", False):
        return PaletteLogits(model, processor.clusters).eval()
    if "spatial_shapes" in processor.model_input_names:
        return PatchLogits(model, processor.patch_size).eval()
    return Logits(model).eval()


def load(directory: Path) -> tuple[Any, list[str], list[str]]:
    """The model in float32, ready to answer; its labels; notes on what was taken although it was not quite whole.

    Raises `CheckpointError` for weights that do not fit the configuration, that lack a part, or that are no numbers.
    """
    config = read_json(directory / CONFIG, "checkpoint")
    labels, notes = labels_of(config, "checkpoint")
    if timm_config.is_timm(config):
        model, info = timm_model.load(directory, config, len(labels))
    else:
        model, info = _from_transformers(directory)
    for name, found, expected in info["mismatched_keys"]:
        raise CheckpointError(
            f"the weights' {name} has shape {list(found)}, but config.json (with {len(labels)} labels) "
            f"needs {list(expected)}"
        )
    # How often a BatchNorm was trained. Nothing reads it any more, and weights from elsewhere lack it.
    counters = [name for name in info["missing_keys"] if name.endswith("num_batches_tracked")]
    missing = sorted(set(info["missing_keys"]) - set(counters))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"the weights lack {', '.join(missing[:3])}{more}: these would be random numbers")
    if counters:
        notes.append(f"the weights lack {len(counters)} counters of training steps, which no answer depends on")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and torch.isnan(tensor).any():
            raise CheckpointError(f"the weights' {name} has NaN, which is no number: the training failed")
    _settle(model)
    # A configuration may ask for tuples, which have no names to find the logits by.
    for part in model.modules():
        if hasattr(part, "config"):
            part.config.return_dict = True
    return model.eval(), list(labels), notes


def _from_transformers(directory: Path) -> tuple[Any, dict[str, Any]]:
    """The model as transformers loads it, and what its weights lack or have in another shape."""
    try:
        found: tuple[Any, dict[str, Any]] = transformers.AutoModelForImageClassification.from_pretrained(
            directory,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        raise CheckpointError(f"transformers cannot load the checkpoint: {first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise CheckpointError(f"model.safetensors is damaged: {first_line(error)}") from error
        raise
    return found


def _settle(model: torch.nn.Module) -> None:
    """Moves weights to where torch itself puts tensors, as those of an exported file are. Loaded ones lie in the mapped
    file at any address, and there CPU kernels add up in another order: by a deep network that grows to differences that
    are not the export's."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.data_ptr() % _ALIGNED:
            tensor.data = tensor.data.clone()


def activation(config: Any, labels: int) -> str:
    """How logits become probabilities, as transformers' image-classification pipeline chooses."""
    several = config.problem_type == "multi_label_classification" or labels == 1
    return "sigmoid" if several else "softmax"


def answer(model: Any, processor: Any, labels: list[str], how: str, picture: Image.Image) -> dict[str, Any]:
    """The likeliest label of one picture, by the original model behind its own processor."""
    with torch.inference_mode():
        logits = logits_of(model(**processor(images=picture, return_tensors="pt")))[0]
    score, label = (logits.sigmoid() if how == "sigmoid" else logits.softmax(-1)).max(-1)
    return {"label": labels[int(label)], "score": round(float(score), 6)}
