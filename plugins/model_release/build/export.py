"""Checkpoint → TorchScript with its labels and preprocessing, compared with the original.

The work is done by `trace.py` in a process of its own; this is its front.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model_release.build import processes, runtimes
from model_release.errors import ArchiveError
from model_release.store import files

# What an export may take beside its interpreter and libraries. It holds the weights two or three times; a checkpoint
# whose configuration asks for far more than its weights explain is stopped here and not by the machine's last byte.
_MEMORY = 6 * 1024**3
_TIMES_THE_WEIGHTS = 8

#: Seconds for one request, where nobody says: the default of `service.timeout`.
RESPONSE_TIMEOUT = 60
#: The report's file in an export's folder, written last.
REPORT = "export.json"
#: What a network is in unless `build.precision` says otherwise.
FLOAT32 = "float32"

_PACKAGES = ("torch", "transformers", "timm", "safetensors", "numpy", "pillow")


@dataclass(frozen=True)
class Export:
    """What an export left in its folder.

    `directory` holds `model.pt` (TorchScript, frozen), `model.json` (labels, input size, preprocessing: what the
    handler reads), `reference.json` (sample images and the original model's answers) and `export.json` (`report`:
    the above, parity at each batch, toolchain, the source's fingerprint).
    """

    directory: Path
    report: dict[str, Any]


def export(
    checkpoint: Path,
    output: Path,
    *,
    handler: Path,
    fingerprint: str,
    samples: Sequence[bytes] = (),
    fold: bool = False,
    precision: str = FLOAT32,
    response_timeout: int = RESPONSE_TIMEOUT,
    batching: Mapping[str, int] | None = None,
    log: Callable[[str], None] | None = None,
    timeout: float = 1800,
) -> Export:
    """Exports the checkpoint in folder `checkpoint` into the folder `output`.

    `handler` is the archive's handler; `image_pixels.py` beside it must give the pixels that the checkpoint's own
    processor gives, which is checked here. `samples` are encoded images for the reference answers (default: two
    drawn ones of the model's input size). `fold` folds BatchNorms into convolutions, within wider limits. In another
    `precision` than float32 the file is held to the network in that one, whose distance from float32 is told. What the
    archive will say of `response_timeout` and `batching` is noted here, with all else that shapes it. `log` gets a line
    for each step.

    Run again, the folder is replaced; equal input and toolchain give files of equal bytes.
    Raises `CheckpointError` (cannot be loaded, traced or preprocessed here), `ParityError` (answers differ by more
    than `torchscript.EXACT` or `FOLDED` allow, with figures), `ArchiveError` (the process died).
    """
    log = log or logging.getLogger(__name__).info
    with TemporaryDirectory(prefix="export-") as scratch, files.replaced(output) as fresh:
        pictures = []
        for number, sample in enumerate(samples):
            pictures.append(str(Path(scratch, f"sample-{number}")))
            Path(pictures[-1]).write_bytes(sample)
        request = {
            "checkpoint": str(checkpoint.resolve()),
            "output": str(fresh.resolve()),
            "handlers": str(handler.resolve().parent),
            "samples": pictures,
            "fold": fold,
            "precision": precision,
            "artifacts": list(runtimes.of_handler(handler).ARTIFACTS),
        }
        Path(scratch, "request.json").write_text(json.dumps(request), encoding="utf-8")
        report = processes.run(
            ["-m", "model_release.build.trace", str(Path(scratch, "request.json"))],
            what="the export",
            log=log,
            env=processes.environment(
                PYTHONPATH=str(processes.PACKAGE_ROOT),
                HF_HOME=scratch,
                HOME=scratch,
                LEASH_MEMORY=str(memory_limit(checkpoint)),
            ),
            timeout=timeout,
            cwd=Path(scratch),
        )
        for note in report["notes"]:
            log(f"note: {note}")
        report = {
            **report,
            "toolchain": toolchain(handler, fold, precision, response_timeout, batching),
            "fingerprint": fingerprint,
        }
        (fresh / REPORT).write_text(
            json.dumps(report, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
    return Export(output, report)


def memory_limit(checkpoint: Path) -> int:
    """Bytes of memory that the export of this checkpoint may have."""
    return _MEMORY + _TIMES_THE_WEIGHTS * sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


def load(directory: Path) -> Export:
    """The export that an earlier task left in `directory`. Raises `ArchiveError` where there is none."""
    try:
        return Export(directory, json.loads((directory / REPORT).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{directory} holds no finished export: {error}") from error


def toolchain(
    handler: Path,
    fold: bool = False,
    precision: str = FLOAT32,
    response_timeout: int = RESPONSE_TIMEOUT,
    batching: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Versions of everything that shapes a version's bytes, the handler's digest, `build.fold` and `.precision`, the
    seconds of `service.timeout` and `service.batching` among them. Cheap: nothing is imported. With the source's
    fingerprint it tells whether a version exists already (`Store.find`)."""
    runtime = runtimes.of_handler(handler)
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *runtime.PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise ArchiveError(f"a build needs the package {name}, which is not installed on this worker") from None
    parts = {path.name: files.sha256(path) for path in runtimes.handler_files(handler)}
    return {
        **found,
        "handler": files.combined(parts),
        **({"fold": "yes"} if fold else {}),
        **({"precision": precision} if precision != FLOAT32 else {}),
        **({"response_timeout": str(response_timeout)} if "response_timeout" in runtime.SETTINGS else {}),
        **({"batching": f"{batching['max']} within {batching['within_ms']} ms"} if batching else {}),
    }
