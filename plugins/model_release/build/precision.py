"""A network in fewer bits than its checkpoint: still pixels in float32 in, logits in float32 out, and other numbers.

`bfloat16` is the whole network in that type. `int8` is each Linear layer (W8A8, dynamic): a scale for each of its
outputs, worked out here, and one for each row that comes in, worked out when it comes. So a picture's answer does not
depend on what else is in its batch. Both are plain operators of torch: an exported program and TorchScript hold them
alike, and on a CPU without instructions for them they are as right and slow.
"""

from __future__ import annotations

from typing import Any

import torch

from model_release.build.told import first_line
from model_release.build.torchscript import Answers, probabilities
from model_release.errors import CheckpointError

#: How far a served probability may be from that of the same network elsewhere: another CPU has other kernels, and what
#: is rounded to a few bits turns a difference in the last digit into one of a step.
TOLERANCE = 0.02

_STEPS = 127


class Bfloat16(torch.nn.Module):
    """A network that was cast."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        # What is no matter of the checkpoint, such as a palette in float64, stays as it is.
        cast: Any = getattr(network, "model", network)
        cast.to(torch.bfloat16)
        self.network = network
        self.takes = torch.float32 if hasattr(network, "clusters") else torch.bfloat16

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(pixel_values.to(self.takes)).float()
        return logits


class Int8Linear(torch.nn.Module):
    """x W + b with both sides of the product in eight bits, symmetric about zero; sums are whole numbers in 32 bits."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = _scale(weight)
        self.bias = linear.bias
        self.register_buffer("whole", _whole(weight, scale).t().contiguous())
        self.register_buffer("scale", scale.flatten())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rows = values.reshape(-1, values.shape[-1])
        scale = _scale(rows)
        products = torch._int_mm(_whole(rows, scale), self.whole).float() * scale * self.scale
        if self.bias is not None:
            products = products + self.bias
        return products.reshape(*values.shape[:-1], products.shape[-1])


def _scale(rows: torch.Tensor) -> torch.Tensor:
    # A row of zeros has any scale.
    return rows.abs().amax(-1, keepdim=True).clamp_min(1e-12) / _STEPS


def _whole(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (rows / scale).round().to(torch.int8)


def reduced(network: torch.nn.Module, precision: str) -> tuple[torch.nn.Module, str]:
    """`network` (pixels → logits) in `precision`, and what of it is: a sentence. The network itself is changed.

    Raises `CheckpointError` for one that has nothing to be quantised.
    """
    if precision == "bfloat16":
        return Bfloat16(network).eval(), "the network is in bfloat16"
    every = sum(parameter.numel() for parameter in network.parameters())
    layers = weights = 0
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            # Not of a subclass, which may compute something else.
            if type(layer) is torch.nn.Linear:
                setattr(parent, name, Int8Linear(layer))
                layers, weights = layers + 1, weights + layer.weight.numel()
    if not layers:
        raise CheckpointError(
            "build.precision int8 is for Linear layers, and this network has none; bfloat16 or float32 is right"
        )
    share = f"{100 * weights / every:.0f} %" if weights < every else "all"
    return network.eval(), f"{layers} Linear layers are in int8: {share} of the weights; the rest is in float32"


def answers(network: torch.nn.Module, ask: Any, precision: str) -> Answers:
    """What the reduced network answers. Raises `CheckpointError` where it cannot, as in a network that reads the type
    of its own weights."""
    try:
        found: Answers = ask(network)
    except CheckpointError as error:
        raise CheckpointError(f"build.precision {precision}: {error}; float32 is right for this network") from error
    except Exception as error:
        raise CheckpointError(
            f"build.precision {precision}: the network does not run in it: {first_line(error)}; float32 is right"
        ) from error
    return found


def compared(exact: Answers, found: Answers, how: str) -> dict[str, Any]:
    """How far it is from float32 on the check's pictures: the largest difference of a probability, and the share of
    the pictures whose likeliest label is another. `how` is softmax or sigmoid."""
    largest, changed, pictures = 0.0, 0, 0
    for key, logits in exact.items():
        largest = max(largest, float((probabilities(found[key], how) - probabilities(logits, how)).abs().max()))
        changed += int((found[key].argmax(-1) != logits.argmax(-1)).sum())
        pictures += len(logits)
    return {
        "largest_probability_difference": largest,
        "labels_changed": changed / pictures,
        "pictures": pictures,
    }
