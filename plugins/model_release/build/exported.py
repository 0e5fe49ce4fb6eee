"""Model → torch.export file (`.pt2`): a graph of operators for any batch, without TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model_release.build.told import first_line
from model_release.build.torchscript import TRACED_BATCH, Size
from model_release.errors import CheckpointError

FILE = "model.pt2"


def write(model: torch.nn.Module, sizes: Sequence[Size], target: Path, *, any_size: bool) -> None:
    """Writes `model` (pixels → logits) as an exported program whose batch is dynamic. With `any_size` height and width
    are too, where the network lets them. Equal input gives equal bytes.

    Raises `CheckpointError` for a network that has an operator, or a decision, that torch.export cannot take.
    """
    example = torch.randn(TRACED_BATCH, 3, *sizes[0], generator=torch.Generator().manual_seed(0))
    dim = torch.export.Dim
    # AUTO gives up on what a network fixes; a batch that was fixed must fail here and not in front of users.
    dimensions = {0: dim.DYNAMIC, **({2: dim.AUTO, 3: dim.AUTO} if any_size else {})}
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=(dimensions,), strict=False)
    except Exception as error:
        raise CheckpointError(f"torch.export cannot take the network: {first_line(error)}") from error
    _strip(program)
    torch.export.save(program, target)


def load(file: Path) -> Any:
    """What `write` wrote, ready to be called."""
    return torch.export.load(file).module()


def _strip(program: Any) -> None:
    """Takes out what says where it was made, and the example: source lines of this machine, and random pixels."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    program.example_inputs = None
