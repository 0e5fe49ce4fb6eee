"""Model → TorchScript file, and whether the file answers what the model answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_release.build.told import first_line
from model_release.errors import CheckpointError, ParityError

FILE = "model.pt"
BATCHES = (1, 3, 8)
#: Batch 1 would be recorded as a constant by some models.
TRACED_BATCH = 2

# Where a file says it: the second place is that of models that every torch since 1.2 can read.
_VERSION = (".data/version", "version")

Size = tuple[int, int]
#: What the model answered, by batch and (height, width).
Answers = dict[tuple[int, Size], torch.Tensor]


@dataclass(frozen=True)
class Limits:
    """How far the file's answers may be from the model's: `logits` relative to how far the logits lie apart (their
    standard deviation, or 1 where that is less), `probability` as it is."""

    logits: float
    probability: float


#: Float32 sums in another order differ by some 1e-7.
EXACT = Limits(1e-5, 1e-5)
#: Folding a BatchNorm into the convolution before it multiplies weights by each other, once and for all.
FOLDED = Limits(1e-3, 1e-4)


def trace(model: torch.nn.Module, size: Size, target: Path, fold: bool = False) -> None:
    """Writes `model` (pixels → logits) as frozen TorchScript. With `fold`, BatchNorms are folded into convolutions:
    somewhat faster, and other numbers. Raises `CheckpointError` for a model that cannot be traced."""
    example = torch.randn(TRACED_BATCH, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            traced = torch.jit.trace(model, example, check_trace=False)
            frozen = torch.jit.freeze(traced.eval(), optimize_numerics=fold)
    except Exception as error:
        raise CheckpointError(
            f"the model cannot be traced with an input of {size[1]}x{size[0]}: {first_line(error)}"
        ) from error
    unstripped = target.with_suffix(".unstripped")
    frozen.save(unstripped)
    strip(unstripped, target)
    unstripped.unlink()


def strip(source: Path, target: Path) -> None:
    """Copies a TorchScript file without its debug records, which hold the source paths of this machine. The rest
    is byte for byte what it was (and the file's own digest, made by the writer, counts anew)."""
    reader = torch._C.PyTorchFileReader(str(source))
    # The writer names the archive's inner folder after the file.
    writer = torch._C.PyTorchFileWriter(str(target))
    # Which form of an operator is meant is a matter of the file's version: tanh-GELU is another GELU before 9.
    records = reader.get_all_records()
    version = next(name for name in _VERSION if name in records)
    writer.set_min_version(int(reader.get_record(version)))
    for name in records:
        # The writer writes these by itself.
        if name.endswith(".debug_pkl") or name in (*_VERSION, ".data/serialization_id"):
            continue
        record = reader.get_record(name)
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def answers(model: torch.nn.Module, sizes: Sequence[Size], labels: int) -> Answers:
    """What `model` (pixels → logits) answers at each batch and size. Raises `CheckpointError` for another number of
    logits than labels, and for logits that are no numbers."""
    found: Answers = {}
    for key, pixels in _pixels(sizes):
        batch = key[0]
        try:
            with torch.inference_mode():
                found[key] = model(pixels)
        except (RuntimeError, ValueError) as error:
            height, width = key[1]
            raise CheckpointError(
                f"the original model cannot answer an input of {width}x{height}: {first_line(error)}"
            ) from error
        if found[key].shape != (batch, labels):
            raise CheckpointError(
                f"the model answers with shape {list(found[key].shape)}; {labels} labels need {[batch, labels]}"
            )
        if not torch.isfinite(found[key]).all():
            raise CheckpointError(
                f"the original model answers with NaN or infinity (batch {batch}): its weights are no trained ones, or "
                "too large for float32"
            )
    return found


def load(file: Path) -> Any:
    """What `trace` wrote, ready to be called."""
    return torch.jit.load(file, map_location="cpu")


def parity(
    expected: Answers,
    exported: Path,
    sizes: Sequence[Size],
    how: str,
    limits: Limits,
    load: Callable[[Path], Any] = load,
) -> dict[str, Any]:
    """The largest differences between what the model answered and what the written file answers, opened by `load`: of
    logits, relative to their spread, at each batch; and of probabilities. `how` is softmax or sigmoid.

    Raises `ParityError` where they are over `limits`, and where the file cannot be opened or does not answer.
    """
    try:
        loaded = load(exported)
    except Exception as error:
        raise ParityError(f"the exported model cannot be opened again: {first_line(error)}") from error
    spread = _spread(expected)
    logits = dict.fromkeys(BATCHES, 0.0)
    probability = 0.0
    for key, pixels in _pixels(sizes):
        batch, (height, width) = key
        try:
            with torch.inference_mode():
                actual = loaded(pixels)
        except Exception as error:  # of an exported program a guard's AssertionError, among others
            raise ParityError(
                f"the exported model fails at batch {batch} of {width}x{height} (traced at {TRACED_BATCH}): "
                f"{first_line(error)}"
            ) from error
        if actual.shape != expected[key].shape:
            raise ParityError(f"the exported model answers batch {batch} with shape {list(actual.shape)}")
        if not torch.isfinite(actual).all():
            raise ParityError(
                f"the exported model answers batch {batch} with NaN or infinity; the original's answers are numbers"
            )
        logits[batch] = max(logits[batch], float((actual - expected[key]).abs().max()) / spread)
        difference = probabilities(actual, how) - probabilities(expected[key], how)
        probability = max(probability, float(difference.abs().max()))
    if not (max(logits.values()) <= limits.logits and probability <= limits.probability):
        figures = ", ".join(f"{difference:.3g} at batch {batch}" for batch, difference in logits.items())
        raise ParityError(
            f"the exported model's logits differ from the original's by {figures} of their spread ({spread:.3g}), "
            f"probabilities by {probability:.3g}; the limits are {limits.logits:g} and {limits.probability:g}"
        )
    return {
        "limit": limits.logits,
        "probability_limit": limits.probability,
        "spread": spread,
        "largest_difference": {str(batch): difference for batch, difference in logits.items()},
        "largest_probability_difference": probability,
    }


def _pixels(sizes: Sequence[Size]) -> Iterator[tuple[tuple[int, Size], torch.Tensor]]:
    """((batch, size), input) of every comparison, the same each time."""
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        for batch in BATCHES:
            yield (batch, size), torch.randn(batch, 3, *size, generator=generator)


def _spread(expected: Answers) -> float:
    """How far the logits lie apart; float32's own grain is a share of that."""
    every = torch.cat([logits.flatten() for logits in expected.values()])
    return max(1.0, float(every.std()))


def probabilities(logits: torch.Tensor, how: str) -> torch.Tensor:
    """`how` is softmax or sigmoid."""
    return logits.sigmoid() if how == "sigmoid" else logits.softmax(-1)
