"""Checkpoint → what a server loads, in a process of its own: `python -m model_release.build.trace request.json`.

Its own process because `torch.jit.trace` gives equal bytes for equal input only as the first trace of a fresh
interpreter, and because a worker should get its memory back. `export.py` starts it and reads one JSON object a
line from its output: `{"progress": text}`, then `{"report": {…}}` or `{"error": class, "message": line}`.

The request: `checkpoint` and `output` (folders), `handlers` (the folder of the handler's modules), `samples` (image
files for the reference answers; empty: two pictures drawn here), `fold` (BatchNorms into convolutions),
`artifacts` (what the runtime serves, best first: `torch.export`, `torchscript`), `precision` (`float32` unless said).
"""

from __future__ import annotations

import base64
import gc
import importlib
import io
import json
import os
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from model_release.build import exported, original, pixels, precision, torchscript
from model_release.build.told import first_line
from model_release.errors import CheckpointError, ParityError, ReleaseError

TOP_K = 5

# Known and harmless: torch.jit's deprecation (the README says what comes after it), size checks in models and
# sdpa's constant `is_causal`. Anything else is shown.
_KNOWN_WARNINGS = (
    (r"`torch\.jit\.\w+` is deprecated", DeprecationWarning, ""),
    (r"`is_gradient_checkpointing` is deprecated", FutureWarning, ""),
    (
        "Converting a tensor to a Python boolean might cause the trace to be incorrect",
        torch.jit.TracerWarning,
        r"transformers\.(integrations\.sdpa_attention|models\.\w+\.modeling_\w+)|timm\.(layers|models)\.\w+",
    ),
)


def run(request: dict[str, Any], say: Any) -> dict[str, Any]:
    """Exports one checkpoint into `request["output"]`: model.pt2 or model.pt, model.json, reference.json. Returns the
    report, which is equal for equal input: runs that build the same leave it for each other.

    Raises `CheckpointError` for one that cannot be exported and `ParityError` for one that answers differently.
    """
    directory, output = Path(request["checkpoint"]), Path(request["output"])
    read_image, preprocess = _handler(Path(request["handlers"]))

    say("loading the checkpoint")
    processor = pixels.load(directory)
    options = pixels.options_of(processor)
    model, labels, notes = original.load(directory)
    sizes = _input_sizes(processor, options, model.config)
    height, width = sizes[0]
    if not options["do_resize"] and not options["do_center_crop"]:
        notes.append(f"the processor does not resize: only images of {width}x{height} are sure of an answer")
    elif len(sizes) > 1:
        notes.append("the processor keeps each image's shape: the model was compared at " + _told(sizes))
    pixel_difference = pixels.compare(preprocess, processor, options, sizes[0])

    images = [Path(path).read_bytes() for path in request["samples"]] or _pictures(height, width)
    activation = original.activation(model.config, len(labels))
    logits = original.wrapped(model, processor)
    expected = torchscript.answers(logits, sizes, len(labels))
    answer = partial(original.answer, model, processor, labels, activation)
    reference = _reference(read_image, images, answer)
    architecture = getattr(model, "architecture", type(model).__name__)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    bits, told = request.get("precision", "float32"), {}
    if bits != "float32":
        if lacking := importlib.import_module("image_model").lacks(bits):
            say(f"on this machine {lacking}")
        exact = expected
        logits, note = precision.reduced(logits, bits)
        expected = precision.answers(logits, partial(torchscript.answers, sizes=sizes, labels=len(labels)), bits)
        told = precision.compared(exact, expected, activation)
        notes.append(f"{note}; {_beside(told)}")
        answer = partial(_reduced_answer, logits, partial(preprocess, options=options), labels, activation)
        reference = {**_reference(read_image, images, answer), "tolerance": precision.TOLERANCE}
    _write(output / "reference.json", reference)

    say(f"exporting {architecture}: {len(labels)} labels, input {width}x{height}")
    comparing = f"comparing with the original at batches {', '.join(map(str, torchscript.BATCHES))}"
    artifact, parity = request["artifacts"][-1], None
    if "torch.export" in request["artifacts"]:
        # Whatever is not resized, or keeps its shape, may come in other sizes.
        any_size = len(sizes) > 1 or not (options["do_resize"] or options["do_center_crop"])
        try:
            exported.write(logits, sizes, output / exported.FILE, any_size=any_size)
            say(comparing)
            parity = torchscript.parity(
                expected, output / exported.FILE, sizes, activation, torchscript.EXACT, exported.load
            )
            artifact = "torch.export"
        except (CheckpointError, ParityError) as error:
            if artifact == "torch.export":
                raise
            (output / exported.FILE).unlink(missing_ok=True)
            notes.append(f"{error}; the version holds TorchScript instead")
    if parity is None:
        torchscript.trace(logits, sizes[0], output / torchscript.FILE, request["fold"])
        say(comparing)
        # The original has said all that it will be asked: its weights must not lie beside those of the file.
        del model, answer, logits
        gc.collect()
        # What was traced keeps its constants in a registry of its own.
        torch._C._jit_clear_class_registry()
        limits = torchscript.FOLDED if request["fold"] else torchscript.EXACT
        parity = torchscript.parity(expected, output / torchscript.FILE, sizes, activation, limits)
    description: dict[str, Any] = {
        "architecture": architecture,
        "labels": labels,
        "input": {"height": height, "width": width},
        "preprocessing": options,
        "activation": activation,
        "top_k": TOP_K,
        **({} if bits == "float32" else {"precision": bits}),
    }
    _write(output / "model.json", description)
    return {
        **description,
        "artifact": artifact,
        "precision": bits,
        # The file beside the network that it was made of; and that one, in fewer bits, beside the checkpoint's.
        "parity": {
            **parity,
            "largest_pixel_difference": pixel_difference,
            **({"beside_float32": told} if told else {}),
        },
        "parameters": parameters,
        "notes": notes,
    }


def _handler(folder: Path) -> tuple[Callable[[bytes], Image.Image], Callable[..., Any]]:
    """How the handler reads a picture, and what it makes of it. Its modules import each other by their plain names, as
    they do in an archive."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module("image_input").read_image, importlib.import_module("image_pixels").preprocess


def _input_sizes(processor: Any, options: dict[str, Any], config: Any) -> list[torchscript.Size]:
    """(height, width) that the model will meet: what the processor makes of every image; or, where it leaves the size
    alone, what the model was configured for; or some of those that it makes of images of several shapes."""
    shown = ((64, 64), (48, 64), (80, 72), (40, 97))
    sizes = [pixels.processed(processor, pixels.picture(rows, columns, 0)).shape[1:] for rows, columns in shown]
    if len(set(sizes)) == 1:
        return [(int(sizes[0][0]), int(sizes[0][1]))]
    if options["do_resize"]:
        return [(int(height), int(width)) for height, width in dict.fromkeys(sizes)]
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return [(size, size)]
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return [(int(size[0]), int(size[1]))]
    raise CheckpointError(
        "neither preprocessor_config.json (do_resize, size) nor config.json (image_size) gives a size"
    )


def _told(sizes: list[torchscript.Size]) -> str:
    return ", ".join(f"{width}x{height}" for height, width in sizes)


def _reference(
    read_image: Callable[[bytes], Image.Image], images: list[bytes], answer: Callable[[Image.Image], dict[str, Any]]
) -> dict[str, Any]:
    """The sample images and what the original model answers to them."""
    expected = []
    for number, image in enumerate(images):
        try:
            expected.append(answer(read_image(image)))
        except (ValueError, RuntimeError, AttributeError, TypeError, IndexError) as error:
            raise CheckpointError(
                f"the original model cannot answer sample image {number}: {first_line(error)}"
            ) from error
    return {"instances": [{"data": base64.b64encode(image).decode()} for image in images], "expected": expected}


def _reduced_answer(
    logits: torch.nn.Module, preprocess: Callable[[Image.Image], Any], labels: list[str], how: str, picture: Image.Image
) -> dict[str, Any]:
    """The likeliest label of one picture, by the network in fewer bits, of the pixels that the handler makes."""
    with torch.inference_mode():
        found = torchscript.probabilities(logits(torch.from_numpy(preprocess(picture))[None]), how)[0]
    score, label = found.max(-1)
    return {"label": labels[int(label)], "score": round(float(score), 6)}


def _beside(told: dict[str, Any]) -> str:
    return (
        f"beside float32 probabilities differ by {told['largest_probability_difference']:.2g} at most, and "
        f"{told['labels_changed']:.0%} of {told['pictures']} pictures of noise get another label"
    )


def _pictures(height: int, width: int) -> list[bytes]:
    encoded = []
    for number in range(2):
        buffer = io.BytesIO()
        pixels.picture(height, width, number).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _known_warnings_filtered() -> Iterator[None]:
    with warnings.catch_warnings():
        for message, category, module in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category, module=module)
        yield


def main() -> int:
    def say(kind: str, value: Any, **more: Any) -> None:
        sys.stdout.write(json.dumps({kind: value, **more}) + "\n")
        sys.stdout.flush()

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        with _known_warnings_filtered():
            say("report", run(request, lambda text: say("progress", text)))
    except ReleaseError as error:
        say("error", type(error).__name__, message=str(error))
        return 1
    except MemoryError as error:
        say("error", "CheckpointError", message=_no_memory(error))
        return 1
    return 0


def _no_memory(error: MemoryError) -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    may = "" if limit == resource.RLIM_INFINITY else f" (it may have {limit / 1e9:.1f} GB)"
    return (
        f"memory ran out: the export{may} asked for {str(error) or 'more'}; either this machine has less to give, or "
        "config.json describes a far larger model than the weights"
    )


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    # Nothing is left to be done: to take torch and transformers apart is a second of nobody's use.
    os._exit(ended)
