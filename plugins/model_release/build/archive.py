"""Export → what KServe downloads, reproducible to the byte: what the serving runtime loads (`build.runtimes`), and
`smoke.json`, sample images with the answers expected of them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model_release.build import processes, runtimes
from model_release.build.export import RESPONSE_TIMEOUT
from model_release.errors import ArchiveError, SpecError
from model_release.store import files
from model_release.store.store import SMOKE


@dataclass(frozen=True)
class Archive:
    """A folder in KServe's layout. `sha256` and `size` (bytes) are those of `file`, the archive in it."""

    directory: Path
    service: str
    file: Path
    sha256: str
    size: int


def archive(
    export_dir: Path,
    service: str,
    handler: Path,
    output: Path,
    *,
    response_timeout: int = RESPONSE_TIMEOUT,
    batching: Mapping[str, int] | None = None,
    log: Callable[[str], None] | None = None,
) -> Archive:
    """Packs the export in `export_dir` for the InferenceService `service` into the folder `output`.

    The model inside is named like the service, in every version: its name is in the URL, and a canary of another
    name would answer 404. `handler` says for which runtime. A request may take `response_timeout` seconds, where the
    archive can say so; `batching` (`max`, `within_ms`) is how many of them the server answers at once. Run again, the
    folder is replaced by one of the same bytes. Raises `ArchiveError`, and `SpecError` for a name that KServe would
    refuse.
    """
    log = log or logging.getLogger(__name__).info
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", service):
        raise SpecError(
            f"{service!r} is no name for a service; right would be lower case, digits and '-', like my-model-2"
        )
    runtime = runtimes.of_handler(handler)
    with TemporaryDirectory(prefix="archive-") as scratch, files.replaced(output) as fresh:
        settings: dict[str, Any] = {"response_timeout": response_timeout, "batching": batching}
        runtime.write(fresh, export_dir, service, handler, Path(scratch), **settings)
    packed_archive = load(output, service)
    log(f"{packed_archive.file.name}: {packed_archive.size / 1e6:.1f} MB, sha256 {packed_archive.sha256[:16]}…")
    return packed_archive


def load(directory: Path, service: str) -> Archive:
    """The archive that an earlier task left in `directory`. Raises `ArchiveError` where there is none."""
    for runtime in map(runtimes.get, runtimes.NAMES):
        if runtime.is_whole(directory, service):
            file = directory / runtimes.archive_file(runtime, service)
            return Archive(directory, service, file, files.sha256(file), file.stat().st_size)
    raise ArchiveError(f"{directory} holds no archive of {service}")


def check(archive: Archive, export_dir: Path, *, log: Callable[[str], None] | None = None) -> dict[str, Any]:
    """`checker` for an archive that is there."""
    with checker(archive.file, export_dir, log=log) as checked:
        return checked(archive)


@contextmanager
def checker(
    file: Path, export_dir: Path, *, log: Callable[[str], None] | None = None, timeout: float = 600
) -> Iterator[Callable[[Archive], dict[str, Any]]]:
    """The check of the archive that is going to be `file`. Its process imports torch while the archive is made of the
    export in `export_dir`, which need not be there yet either; then it is called with it.

    It opens the finished archive as its server does, in a process that has torch, Pillow and NumPy and nothing of
    Hugging Face's, and asks its handler for real images.

    It must give the original model's answers (`reference.json` of the export) to a request in V1, and blame bad input
    on the client. Returns the smoke test, `{"instances": [{"data": base64}], "expected":
    [{"label", "score"}]}`, and leaves it in the archive's `smoke.json`. Run again, it does so again.

    Raises `ArchiveError` with the handler's own words.
    """
    say, runtime = log or logging.getLogger(__name__).info, runtimes.of_archive(file)
    # -I: neither this package nor anything the worker has on its path.
    program = ["-I", str(Path(__file__).with_name("bare_check.py")), str(runtimes.source(runtime))]
    with (
        TemporaryDirectory(prefix="bare-") as scratch,
        processes.begun(
            [*program, str(file), str(export_dir / "reference.json")],
            what=f"the check of {file.name}",
            log=say,
            env=processes.environment(**runtime.ENVIRONMENT, TMPDIR=scratch, HOME=scratch),
            timeout=timeout,
            cwd=Path(scratch),
        ) as report,
    ):
        yield lambda archive: _checked(archive, export_dir, report(), say)


def _checked(archive: Archive, export_dir: Path, report: dict[str, Any], log: Callable[[str], None]) -> dict[str, Any]:
    smoke = json.loads((export_dir / "reference.json").read_text(encoding="utf-8"))
    (archive.directory / SMOKE).write_text(
        json.dumps(smoke, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    log(
        f"{archive.file.name} answers {len(smoke['expected'])} images as the original does "
        f"(scores within {report['largest_difference']:.1g}), loaded in {report['load_seconds']:.1f} s"
    )
    return dict(smoke)
