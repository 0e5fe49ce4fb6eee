"""Checks a version's files against its version.json where they are served, then starts what serves them.

    python verify_version.py FOLDER [-- COMMAND ARGUMENT …]

Runs in the model server's own container and needs nothing but the Python of its image (3.9 or later). An init container
cannot do it: a ServingRuntime has none (KServe's ServingRuntimePodSpec), and KServe's storage initializer is the last.

Every file that version.json names must be there with its size and SHA-256, and no other file may lie in config/ and
model-store/, which is what TorchServe reads. Otherwise one line says what is wrong, and the exit code is 1: KServe
shows the line in the InferenceService's status. A folder without version.json is none of this project's versions:
that is said, and it is served as it is.
An image whose torch is older than the build's is told. Run again at each start of the container, it checks again.
"""

import hashlib
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

SERVED = ("config", "model-store")


def problems(folder: Path, record: "dict[str, Any]") -> "list[str]":
    """What differs from the record, a few words for each; none when all is as it says."""
    listed = record["files"]
    found = []
    for name in sorted(listed):
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            found.append(f"{name} would be outside of the folder")
        elif not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != listed[name]["size"]:
            found.append(f"{name} has {file.stat().st_size} bytes instead of {listed[name]['size']}")
        elif _sha256(file) != listed[name]["sha256"]:
            found.append(f"{name} has another SHA-256")
    for part in SERVED:
        there = (file.relative_to(folder).as_posix() for file in sorted((folder / part).rglob("*")) if file.is_file())
        found += [f"{name} does not belong to it" for name in there if name not in listed]
    return found


def older(record: "dict[str, Any]") -> str:
    """What to know where this image's torch is older than the build's; nothing where it is not, or nobody can tell."""
    built = str((record.get("toolchain") or {}).get("torch") or "")
    try:
        here = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
    if not built or _release(here) >= _release(built):
        return ""
    return (
        f"was built by torch {built}, and this image has {here}: TorchScript is read by newer versions than its own, "
        "and not always by older ones; a serving image with the build's torch is right"
    )


def _release(torch: str) -> "list[int]":
    """Major and minor: what TorchScript's operators go with."""
    return [int(part) for part in torch.split("+")[0].split(".")[:2] if part.isdigit()]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        digest = hashlib.sha256()
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def main(argv: "list[str]") -> int:
    """0 when the files are what version.json says (and there is nothing to start), 1 when they are not."""
    folder, command = Path(argv[0]), argv[2:]
    try:
        text = (folder / "version.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        print(f"{folder} has no version.json: served unverified", flush=True)
    else:
        try:
            record = json.loads(text)
            found, name = problems(folder, record), record["version"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found, name = [f"version.json is none ({error!r})"], "of unknown name"
        if found:
            print(f"Version {name} is not what its version.json says: {'; '.join(found)}", file=sys.stderr)
            return 1
        print(f"Version {name}: {len(record['files'])} files are what version.json says", flush=True)
        if told := older(record):
            print(f"Version {name} {told}", file=sys.stderr, flush=True)
    if command:
        os.execvp(command[0], command)  # noqa: S606 -- the container's own command, and no shell
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
