"""Runs an archive where there is nothing but torch, Pillow and NumPy: `python -I bare_check.py RUNTIME.py ARCHIVE REF`.

Its standard input ends when the archive is there: torch is imported meanwhile. A program of its own that imports
nothing of this project, since the serving image has none of it. The first file is
the runtime's module (`build.runtimes`): the server's own package is used where it is installed; the few parts of it
that an archive's code meets are stood in for where it is not. Prints one JSON object: `{"report": …}` or
`{"error": "ArchiveError", "message": …}`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

# A build's worker has these; a serving image need not.
ABSENT = frozenset({"transformers", "tokenizers", "huggingface_hub", "safetensors", "torchvision", "timm", "datasets"})
ABSENT |= {"accelerate", "sklearn", "scipy", "pandas", "matplotlib", "boto3", "botocore", "kubernetes", "airflow"}
ABSENT |= {"pydantic", "model_release"}
#: Preprocessing and forward pass repeat the original's to some 1e-6; this leaves room for another CPU. A network in
#: fewer bits says how much it needs.
SCORE_LIMIT = 1e-4


class Refusal(Exception):
    """The archive is not fit to be published; the message says why."""


class Finder:
    """One of Python's own finders, to which what is installed here, but not in a serving image, is not there."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, *rest: Any) -> Any:
        return None if name.partition(".")[0] in ABSENT else self._finder.find_spec(name, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks an archive into `folder`.

    This project's archives are stored, so they cannot hold more than their own size: one that says so is a bomb.
    `zipfile` takes ".." and leading slashes out of names, and makes no links. Raises `Refusal`.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise Refusal(
                    f"{archive.name} is compressed; an archive of this project is stored, so nothing can swell"
                )
            if sum(entry.file_size for entry in entries) > archive.stat().st_size:
                raise Refusal(f"{archive.name} would unpack to more than its own size")
            packed.extractall(folder)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise Refusal(f"{archive.name} is no archive: {_line(error)}") from error


def check(runtime: Any, archive: Path, reference: dict[str, Any]) -> dict[str, Any]:
    """Loads the archive, compares its answers with the reference and its refusals with the rule."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        unpack(archive, folder)
        started = time.monotonic()
        opened = _open(runtime, folder, archive.stem)
        seconds = time.monotonic() - started
        difference = _compare(opened, reference)
        _refuses_bad_input(opened)
        return {"largest_difference": difference, "load_seconds": round(seconds, 2)}


def _open(runtime: Any, folder: Path, name: str) -> Any:
    try:
        return runtime.Loaded(folder, name)
    except ImportError as error:
        absent = " in the serving image" if (error.name or "").partition(".")[0] in ABSENT else ""
        raise Refusal(f"{runtime.ENTRY} does not load in a bare environment: {error}{absent}") from error
    except Exception as error:
        raise Refusal(f"{runtime.ENTRY} fails to load the model: {_line(error)}") from error


def _compare(opened: Any, reference: dict[str, Any]) -> float:
    try:
        predictions = opened.predict(reference["instances"])
    except Exception as error:
        raise Refusal(f"the handler fails on the sample images: {_line(error)}") from error
    if len(predictions) != len(reference["expected"]):
        raise Refusal(f"the handler gives {len(predictions)} answers to {len(reference['expected'])} images")
    worst, limit = 0.0, reference.get("tolerance", SCORE_LIMIT)
    for number, (labels, expected) in enumerate(zip(predictions, reference["expected"], strict=True)):
        # Equal scores may come in either order, so the expected label is looked up rather than taken from the top.
        score = next((item["score"] for item in labels if item["label"] == expected["label"]), float("nan"))
        difference = max(abs(score - expected["score"]), abs(labels[0]["score"] - expected["score"]))
        if not difference <= limit:
            raise Refusal(
                f"the archive answers image {number} with {labels[0]['label']} ({labels[0]['score']:.4f}), "
                f"the original model with {expected['label']} ({expected['score']:.4f})"
            )
        worst = max(worst, difference)
    return worst


def _refuses_bad_input(opened: Any) -> None:
    try:
        opened.predict([{"data": "bm8gaW1hZ2U="}])
    except Exception as error:
        if opened.is_clients(error):
            return
        raise Refusal(f"bad input must be the client's error (400); the handler raises {_line(error)}") from error
    raise Refusal("bad input must be the client's error (400); the handler answers it as if it were an image")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"


def _module(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("runtime", file)
    if spec is None or spec.loader is None:
        raise Refusal(f"{file} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    sys.meta_path[:] = [Finder(finder) for finder in sys.meta_path]
    runtime, archive = _module(Path(sys.argv[1])), Path(sys.argv[2])
    # Whatever keeps it from being imported is told where the archive asks for it.
    with suppress(Exception):
        importlib.import_module("torch")
    sys.stdin.read()
    reference = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    try:
        result: dict[str, Any] = {"report": check(runtime, archive, reference)}
    except Refusal as refusal:
        result = {"error": "ArchiveError", "message": str(refusal)}
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    # Nothing is left to be done, and torch would take its time to be taken apart.
    os._exit(ended)
