"""Runs an archive's handler where there is nothing but torch, Pillow and NumPy: `python -I bare_check.py MAR REF`.

A program of its own that imports nothing of this project, since the serving image has none of it. TorchServe's
own `ts` package is used where it is installed; the few parts of it that a handler meets are stood in for where it
is not. Prints one JSON object: `{"report": …}` or `{"error": "ArchiveError", "message": …}`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
import time
import zipfile
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# A build's worker has these; a serving image need not.
ABSENT = frozenset({"transformers", "tokenizers", "huggingface_hub", "safetensors", "torchvision", "timm", "datasets"})
ABSENT |= {"accelerate", "sklearn", "scipy", "pandas", "matplotlib", "boto3", "botocore", "kubernetes", "airflow"}
ABSENT |= {"pydantic", "model_release"}
#: Preprocessing and forward pass repeat the original's to some 1e-6; this leaves room for another CPU.
SCORE_LIMIT = 1e-4


class Refusal(Exception):
    """The archive is not fit to be published; the message says why."""


class AbsentPackages(MetaPathFinder):
    """Makes what is installed here, but not in a serving image, look as it does there."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r} in the serving image", name=name)
        return None


class Metrics:
    """Keeps the names of what the handler emits."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add_metric(self, name: str, *_: Any, **__: Any) -> None:
        self.names.append(name)


class Context:
    """TorchServe's `ts.context.Context`, as far as envelope and handler use it."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.system_properties = {"model_dir": str(folder), "gpu_id": None, "batch_size": 1}
        self.manifest, self.metrics = manifest, Metrics()

    def get_request_header(self, *_: Any) -> None:
        return None


def stand_in_for_torchserve() -> None:
    """Provides the four names of `ts` that a handler imports and the KServe envelope, where `ts` is missing."""
    if importlib.util.find_spec("ts") is not None:
        return

    class PredictionException(Exception):
        def __init__(self, message: str, error_code: int = 500) -> None:
            super().__init__(message)
            self.message, self.error_code = message, error_code

    class Dimension:
        def __init__(self, name: str, value: str) -> None:
            self.name, self.value = name, value

    class MetricTypes:
        COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    class KServeEnvelope:
        def __init__(self, handle: Any) -> None:
            self._handle = handle

        def parse_input(self, data: Any) -> Any:
            body = data[0].get("data") or data[0].get("body")
            body = json.loads(body) if isinstance(body, (bytes, bytearray)) else body
            return body.get("instances")

        def format_output(self, data: Any) -> Any:
            return [{"predictions": data}]

        def handle(self, data: Any, context: Any) -> Any:
            return self.format_output(self._handle(self.parse_input(data), context))

    homes: dict[str, dict[str, Any]] = {
        "ts.utils.util": {"PredictionException": PredictionException},
        "ts.metrics.dimension": {"Dimension": Dimension},
        "ts.metrics.metric_type_enum": {"MetricTypes": MetricTypes},
        "ts.torch_handler.request_envelope.kserve": {"KServeEnvelope": KServeEnvelope},
    }
    for home, names in homes.items():
        parts = home.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            sys.modules.setdefault(name, ModuleType(name))
        vars(sys.modules[home]).update(names)


def unpack(mar: Path, folder: Path) -> dict[str, Any]:
    """Unpacks an archive into `folder` and returns its manifest.

    This project's archives are stored, so they cannot hold more than their own size: one that says so is a bomb.
    `zipfile` takes ".." and leading slashes out of names, and makes no links. Raises `Refusal`.
    """
    try:
        with zipfile.ZipFile(mar) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise Refusal(f"{mar.name} is compressed; an archive of this project is stored, so nothing can swell")
            if sum(entry.file_size for entry in entries) > mar.stat().st_size:
                raise Refusal(f"{mar.name} would unpack to more than its own size")
            archive.extractall(folder)
        manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text(encoding="utf-8"))
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise Refusal(f"{mar.name} is no archive: {_line(error)}") from error
    return dict(manifest)


def check(mar: Path, reference: dict[str, Any]) -> dict[str, Any]:
    """Loads the archive, compares its answers with the reference and its refusals with the rule."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = unpack(mar, folder)
        sys.path.insert(0, str(folder))
        context = Context(folder, manifest)
        started = time.monotonic()
        answer = _load(manifest["model"]["handler"], context)
        seconds = time.monotonic() - started
        difference = _compare(answer, context, reference)
        _refuses_bad_input(answer, context)
        return {"largest_difference": difference, "load_seconds": round(seconds, 2), "metrics": context.metrics.names}


def _load(handler: str, context: Context) -> Any:
    try:
        module = importlib.import_module(handler.removesuffix(".py"))
        classes = [
            item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__
        ]
        if len(classes) != 1:
            raise Refusal(f"{handler} must define one class, TorchServe's entry; it defines {len(classes)}")
        instance = classes[0]()
        instance.initialize(context)
        envelope = importlib.import_module("ts.torch_handler.request_envelope.kserve").KServeEnvelope
    except ImportError as error:
        raise Refusal(f"{handler} does not load in a bare environment: {error}") from error
    except Refusal:
        raise
    except Exception as error:
        raise Refusal(f"{handler} fails to load the model: {_line(error)}") from error
    return envelope(instance.handle).handle


def _compare(answer: Any, context: Context, reference: dict[str, Any]) -> float:
    try:
        predictions = answer([{"body": {"instances": reference["instances"]}}], context)[0]["predictions"]
    except Exception as error:
        raise Refusal(f"the handler fails on the sample images: {_line(error)}") from error
    if len(predictions) != len(reference["expected"]):
        raise Refusal(f"the handler gives {len(predictions)} answers to {len(reference['expected'])} images")
    worst = 0.0
    for number, (labels, expected) in enumerate(zip(predictions, reference["expected"], strict=True)):
        # Equal scores may come in either order, so the expected label is looked up rather than taken from the top.
        score = next((item["score"] for item in labels if item["label"] == expected["label"]), float("nan"))
        difference = max(abs(score - expected["score"]), abs(labels[0]["score"] - expected["score"]))
        if not difference <= SCORE_LIMIT:
            raise Refusal(
                f"the archive answers image {number} with {labels[0]['label']} ({labels[0]['score']:.4f}), "
                f"the original model with {expected['label']} ({expected['score']:.4f})"
            )
        worst = max(worst, difference)
    return worst


def _refuses_bad_input(answer: Any, context: Context) -> None:
    try:
        answer([{"body": {"instances": [{"data": "bm8gaW1hZ2U="}]}}], context)
    except Exception as error:
        if getattr(error, "error_code", None) == 400:
            return
        raise Refusal(f"bad input must be the client's error (400); the handler raises {_line(error)}") from error
    raise Refusal("bad input must be the client's error (400); the handler answers it as if it were an image")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"


def main() -> int:
    sys.meta_path.insert(0, AbsentPackages())
    stand_in_for_torchserve()
    mar, reference = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    try:
        result: dict[str, Any] = {"report": check(mar, reference)}
    except Refusal as refusal:
        result = {"error": "ArchiveError", "message": str(refusal)}
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
