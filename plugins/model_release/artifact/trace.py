"""Checkpoint → TorchScript, in a process of its own: `python -m model_release.artifact.trace request.json`.

Its own process because `torch.jit.trace` gives equal bytes for equal input only as the first trace of a fresh
interpreter, and because a worker should get its memory back. `export.py` starts it and reads one JSON object a
line from its output: `{"progress": text}`, then `{"report": {…}}` or `{"error": class, "message": line}`.

The request: `checkpoint` and `output` (folders), `image_input` (the handler's preprocessing, a file), `samples`
(image files for the reference answers; empty: two pictures drawn here).
"""

from __future__ import annotations

import base64
import gc
import importlib.util
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from model_release.errors import CheckpointError, ParityError, ReleaseError

BATCHES = (1, 3, 8)
#: Largest difference of any logit from the eager model's. Float32 sums in another order differ by some 1e-7.
PARITY_LIMIT = 1e-5
#: Batch 1 would be recorded as a constant by some models.
TRACED_BATCH = 2
PIXEL_LIMIT = 1e-5
TOP_K = 5

# Known and harmless: torch.jit's deprecation (the README says what comes after it), size checks in models and
# sdpa's constant `is_causal`. Anything else is shown.
_KNOWN_WARNINGS = (
    (r"`torch\.jit\.\w+` is deprecated", DeprecationWarning, ""),
    (r"`is_gradient_checkpointing` is deprecated", FutureWarning, ""),
    (
        "Converting a tensor to a Python boolean might cause the trace to be incorrect",
        torch.jit.TracerWarning,
        r"transformers\.(integrations\.sdpa_attention|models\.\w+\.modeling_\w+)",
    ),
)


class Logits(torch.nn.Module):
    """The model as TorchScript needs it: a tensor in, a tensor out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def run(request: dict[str, Any], say: Any) -> dict[str, Any]:
    """Exports one checkpoint into `request["output"]`: model.pt, model.json, reference.json. Returns the report, which
    is equal for equal input: runs that build the same leave it for each other.

    Raises `CheckpointError` for one that cannot be exported and `ParityError` for one that answers differently.
    """
    directory, output = Path(request["checkpoint"]), Path(request["output"])
    image_input = _module(Path(request["image_input"]))

    say("loading the checkpoint")
    model, labels = _model(directory)
    processor, options = _processor(directory, image_input)
    height, width = _input_size(processor, options, model.config)
    notes = []
    if not options["do_resize"] and not options["do_center_crop"]:
        notes.append(f"the processor does not resize: only images of {width}x{height} are sure of an answer")
    pixel_difference = _compare_pixels(image_input, processor, options, (height, width))

    images = [Path(path).read_bytes() for path in request["samples"]] or _pictures(height, width)
    # As transformers' image-classification pipeline chooses.
    multi_label = model.config.problem_type == "multi_label_classification" or len(labels) == 1
    activation = "sigmoid" if multi_label else "softmax"
    answer = partial(_answer, model, processor, labels, activation)
    _write(output / "reference.json", _reference(image_input, options, images, answer))
    expected = _logits(model, (height, width), len(labels))
    architecture, parameters = type(model).__name__, sum(parameter.numel() for parameter in model.parameters())

    say(f"tracing {architecture}: {len(labels)} labels, input {width}x{height}")
    _trace(model, (height, width), output / "model.pt")

    say(f"comparing with the original at batches {', '.join(map(str, BATCHES))}")
    # The original has said all that it will be asked: its weights must not lie beside those of the file.
    del model, answer
    gc.collect()
    # What was traced keeps its constants in a registry of its own.
    torch._C._jit_clear_class_registry()
    parity = _parity(expected, output / "model.pt", (height, width))
    description = {
        "architecture": architecture,
        "labels": labels,
        "input": {"height": height, "width": width},
        "preprocessing": options,
        "activation": activation,
        "top_k": TOP_K,
    }
    _write(output / "model.json", description)
    return {
        **description,
        "parity": {
            "limit": PARITY_LIMIT,
            "largest_difference": {str(batch): difference for batch, difference in parity.items()},
            "largest_pixel_difference": pixel_difference,
        },
        "parameters": parameters,
        "notes": notes,
    }


def _model(directory: Path) -> tuple[Any, list[str]]:
    try:
        model, info = transformers.AutoModelForImageClassification.from_pretrained(
            directory,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        raise CheckpointError(f"transformers cannot load the checkpoint: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise CheckpointError(f"model.safetensors is damaged: {_first_line(error)}") from error
        raise
    config = model.config
    labels = [str(config.id2label[index]) for index in range(len(config.id2label))]
    for name, found, expected in info["mismatched_keys"]:
        raise CheckpointError(
            f"the weights' {name} has shape {list(found)}, but config.json (with {len(labels)} labels) "
            f"needs {list(expected)}"
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"the weights lack {', '.join(missing[:3])}{more}: these would be random numbers")
    return model.eval(), labels


def _processor(directory: Path, image_input: ModuleType) -> tuple[Any, dict[str, Any]]:
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            directory, backend="pil", trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise CheckpointError(f"transformers cannot load preprocessor_config.json: {_first_line(error)}") from error
    settings = processor.to_dict()
    faults = image_input.unknown_options(settings)
    if faults:
        raise CheckpointError(f"the handler cannot reproduce {type(processor).__name__}'s {'; '.join(faults)}")
    options = {name: settings.get(name) for name in image_input.OPTIONS}
    for name in ("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        options[name] = bool(options[name])
    for name in ("size", "crop_size"):
        options[name] = {key: value for key, value in (options[name] or {}).items() if value is not None} or None
    if options["resample"] is not None:
        options["resample"] = int(options["resample"])
    for name in ("image_mean", "image_std"):
        options[name] = list(options[name]) if options[name] is not None else None
    return processor, options


def _input_size(processor: Any, options: dict[str, Any], config: Any) -> tuple[int, int]:
    """(height, width) that the model will meet: what the processor makes of every image, or, where it leaves
    the size alone, what the model was configured for."""
    shapes = {_processed(processor, _picture(rows, columns, 0)).shape for rows, columns in ((48, 64), (80, 72))}
    if len(shapes) == 1:
        _, height, width = shapes.pop()
        return int(height), int(width)
    if options["do_resize"]:
        raise CheckpointError(
            f"the handler cannot reproduce size={options['size']} without do_center_crop: each image would reach "
            "the model in a size of its own, and a traced model takes one"
        )
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise CheckpointError(
        "neither preprocessor_config.json (do_resize, size) nor config.json (image_size) gives a size"
    )


def _compare_pixels(image_input: ModuleType, processor: Any, options: dict[str, Any], size: tuple[int, int]) -> float:
    height, width = size
    sizes = [(height, width)]
    if options["do_resize"] or options["do_center_crop"]:
        sizes += [(57, 40), (40, 57), (height * 2 + 1, width + 9), (301, 419)]
    worst = 0.0
    for number, (rows, columns) in enumerate(sizes):
        picture = _picture(rows, columns, number)
        expected, actual = _processed(processor, picture), image_input.preprocess(picture, options)
        same_shape = expected.shape == actual.shape
        difference = float(np.abs(expected - actual).max()) if same_shape else float("inf")
        if not difference <= PIXEL_LIMIT:
            raise CheckpointError(
                f"the handler cannot reproduce {type(processor).__name__}: for an image of {columns}x{rows} its pixels "
                f"differ by {difference:.3g} (limit {PIXEL_LIMIT:g}); options {json.dumps(options)}"
            )
        worst = max(worst, difference)
    return worst


def _trace(model: torch.nn.Module, size: tuple[int, int], target: Path) -> None:
    example = torch.randn(TRACED_BATCH, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            traced = torch.jit.trace(Logits(model), example, check_trace=False)
            frozen = torch.jit.freeze(traced.eval())
    except Exception as error:
        raise CheckpointError(
            f"the model cannot be traced with an input of {size[1]}x{size[0]}: {_first_line(error)}"
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
    for name in reader.get_all_records():
        # The writer writes these two by itself.
        if name.endswith(".debug_pkl") or name in (".data/version", ".data/serialization_id"):
            continue
        record = reader.get_record(name)
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def _pixels(size: tuple[int, int]) -> Iterator[tuple[int, torch.Tensor]]:
    """(batch, input) of every comparison, the same each time."""
    generator = torch.Generator().manual_seed(1)
    for batch in BATCHES:
        yield batch, torch.randn(batch, 3, *size, generator=generator)


def _logits(model: torch.nn.Module, size: tuple[int, int], labels: int) -> dict[int, torch.Tensor]:
    """What the model answers at each batch."""
    found: dict[int, torch.Tensor] = {}
    for batch, pixels in _pixels(size):
        with torch.inference_mode():
            found[batch] = model(pixel_values=pixels).logits
        if found[batch].shape != (batch, labels):
            raise CheckpointError(
                f"the model answers with shape {list(found[batch].shape)}; {labels} labels need {[batch, labels]}"
            )
    return found


def _parity(expected: dict[int, torch.Tensor], exported: Path, size: tuple[int, int]) -> dict[int, float]:
    """Largest difference of logits at each batch, between what the model answered and the file that was written."""
    loaded = torch.jit.load(exported, map_location="cpu")
    differences: dict[int, float] = {}
    for batch, pixels in _pixels(size):
        with torch.inference_mode():
            try:
                actual = loaded(pixels)
            except RuntimeError as error:
                raise ParityError(
                    f"the exported model fails at batch {batch} (traced at {TRACED_BATCH}): {_first_line(error)}"
                ) from error
        same_shape = actual.shape == expected[batch].shape
        differences[batch] = float((actual - expected[batch]).abs().max()) if same_shape else float("inf")
    # Written so that NaN is a difference too.
    if not all(difference <= PARITY_LIMIT for difference in differences.values()):
        figures = ", ".join(f"{difference:.3g} at batch {batch}" for batch, difference in differences.items())
        raise ParityError(
            f"the exported model's logits differ from the original's by {figures}; the limit is {PARITY_LIMIT:g}"
        )
    return differences


def _reference(
    image_input: ModuleType,
    options: dict[str, Any],
    images: list[bytes],
    answer: Callable[[Image.Image], dict[str, Any]],
) -> dict[str, Any]:
    """The sample images and what the original model answers to them."""
    expected = []
    for number, image in enumerate(images):
        try:
            expected.append(answer(image_input.read_image(image, options["do_convert_rgb"])))
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the original model cannot answer sample image {number}: {_first_line(error)}"
            ) from error
    return {"instances": [{"data": base64.b64encode(image).decode()} for image in images], "expected": expected}


def _answer(model: Any, processor: Any, labels: list[str], activation: str, picture: Image.Image) -> dict[str, Any]:
    """The likeliest label of one picture, by the original model behind its own processor."""
    pixels = torch.from_numpy(_processed(processor, picture))[None]
    with torch.inference_mode():
        logits = model(pixel_values=pixels).logits[0]
    score, label = (logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)).max(-1)
    return {"label": labels[int(label)], "score": round(float(score), 6)}


def _processed(processor: Any, picture: Image.Image) -> Any:
    """The checkpoint's own processor: float32, [3, height, width]."""
    return np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0], np.float32)


def _picture(height: int, width: int, number: int) -> Image.Image:
    """A picture with edges, gradients and grain, the same on every machine."""
    rows, columns = np.mgrid[0:height, 0:width]
    tile = max(2, min(height, width) // 4)
    check = ((rows // tile + columns // tile + number) % 2) * 96
    grain = (rows * 73 + columns * 151 + number * 37) % 31
    bands = [rows * 128 // height, columns * 128 // width, (rows + columns) * 128 // (height + width)]
    return Image.fromarray(np.stack([check + grain + band for band in bands], -1).astype(np.uint8))


def _pictures(height: int, width: int) -> list[bytes]:
    encoded = []
    for number in range(2):
        buffer = io.BytesIO()
        _picture(height, width, number).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CheckpointError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _first_line(error: BaseException) -> str:
    """The line of a (TorchScript) error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in lines if line.startswith("RuntimeError")), lines[0] if lines else type(error).__name__
    )


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
    except MemoryError:
        say("error", "CheckpointError", message="the checkpoint needs far more memory than its weights explain")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
