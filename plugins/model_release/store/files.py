"""Files and their digests, as checkpoints, builds and versions all need them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(directory: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """{relative POSIX path: SHA-256} of every file under `directory`, sorted by path. A digest in `known` is taken."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    names = {path.relative_to(directory).as_posix(): path for path in paths}
    return {name: (known or {}).get(name) or sha256(path) for name, path in names.items()}


def combined(parts: Mapping[str, str]) -> str:
    """One SHA-256 over sorted (name, digest) pairs: equal content under equal names, equal result."""
    lines = "".join(f"{name}\0{parts[name]}\n" for name in sorted(parts))
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def replaced(directory: Path) -> Iterator[Path]:
    """An empty folder beside `directory` that takes its place when the block ends well.

    Whoever reads `directory` meets the old content or the new, never half of one. Run again, the result is
    replaced by one like it; after an error or a kill the old one is still there.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        if directory.exists():
            directory.replace(scratch / "old")
        fresh.replace(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
