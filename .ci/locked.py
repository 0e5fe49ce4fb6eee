"""What is installed: the lock's packages, each with its hashes, and which of PyTorch's two builds."""

from __future__ import annotations

import hashlib
import platform
import re
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "include/images"
# Of KServe's own server, which cannot live beside Airflow (runtime: kserve): its list.
KSERVE = IMAGES / "serving-kserve/requirements.txt"
LOCK, LISTED, CPU = ROOT / "uv.lock", ROOT / "requirements.txt", ROOT / "torch-cpu.txt"

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE = 4.0  # seconds, for the first word of an index that is only asked whether it has a wheel
# What only PyTorch's build with CUDA needs.
CUDA = re.compile(r"(nvidia|cuda)-|triton(==|$)")


class SetupError(Exception):
    """One line: what is wrong, and what to do."""


@dataclass(frozen=True)
class Wheel:
    """A wheel of PyTorch without CUDA: its name, the folder or page it is linked from, its SHA-256."""

    name: str
    place: str
    sha256: str


def version(package: str) -> str:
    found = re.search(rf"^{package}==([^\s;]+)", LISTED.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SetupError(f"{LISTED.name} pins no {package}: make lock writes it anew")
    return found[1]


def hashes(wanted: Callable[[str], bool] = lambda _: True) -> dict[tuple[str, str], list[str]]:
    """{(name, version): ["sha256:…"]} of every file that uv.lock allows; of those alone whose names are `wanted`."""
    try:
        packages: list[dict[str, Any]] = tomllib.loads(LOCK.read_text(encoding="utf-8"))["package"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise SetupError(f"{LOCK.name} cannot be read ({error}): git checkout {LOCK.name}") from None
    files = {
        (one["name"], one["version"]): [*one.get("wheels", ()), *([one["sdist"]] if "sdist" in one else ())]
        for one in packages
    }
    return {which: [one["hash"] for one in found if wanted(one.get("url", ""))] for which, found in files.items()}


def cpu_hashes() -> dict[str, str]:
    """{wheel: SHA-256} of torch-cpu.txt."""
    rows = [line.split() for line in CPU.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: digest for digest, name in rows}


def requirements(wheel: Wheel | None) -> str:
    """requirements.txt with the hashes of uv.lock; with `wheel` in PyTorch's place, and nothing of CUDA beside it."""
    listed = LISTED.read_text(encoding="utf-8").splitlines()
    if wheel:
        listed = [line for line in listed if not CUDA.match(line)]
    lines = hashed(listed, hashes())
    return "".join(f"{in_place(line, wheel)}\n" for line in lines)


def hashed(listed: Iterable[str], known: Mapping[tuple[str, str], list[str]]) -> list[str]:
    """The lines of a list of requirements, each with its hashes in `known`."""
    lines = []
    for line in listed:
        if line.startswith("#") or not line.strip():
            continue
        name, _, pinned = line.partition(" ")[0].partition("==")
        if (name, pinned) not in known:
            raise SetupError(f"{LISTED.name} has {name} {pinned}, and {LOCK.name} has not: make lock writes both anew")
        lines.append(" ".join([line, *(f"--hash={one}" for one in known[name, pinned])]))
    return lines


def in_place(line: str, wheel: Wheel | None) -> str:
    """The line, or the one of `wheel` where it is PyTorch's."""
    return f"{line.split()[0]}+cpu --hash=sha256:{wheel.sha256}" if wheel and line.startswith("torch==") else line


def kserve_requirements(wheel: Wheel | None) -> str:
    """The list of KServe's server, a line for each package; with `wheel` in PyTorch's place, as above."""
    lines = []
    for line in KSERVE.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if wheel and CUDA.match(line):
            continue
        lines.append(in_place(line, wheel))
    return "\n".join(lines) + "\n"


def places(environment: Mapping[str, str]) -> Iterator[str]:
    """Where a wheel of PyTorch may be linked: folders and pages that the user named, then PyTorch's own index."""
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        yield from re.split(r"[\s,]+", environment.get(name, "").strip())
    for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        for index in environment.get(name, "").split():
            yield f"{index.rpartition('=')[2].rstrip('/')}/torch/"
    yield f"{CPU_INDEX}/torch/"


def wheels(place: str, known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, SHA-256 or nothing) of each wheel of PyTorch without CUDA there; none where nobody answers. A file in a
    folder is read only where its hash is not `known`: it has hundreds of megabytes."""
    folder = Path(place.removeprefix("file://"))
    if folder.is_dir():
        for path in sorted(folder.glob("torch-*+cpu-*.whl")):
            if path.name in known:
                yield path.name, known[path.name]
                continue
            with path.open("rb") as file:
                yield path.name, hashlib.file_digest(file, "sha256").hexdigest()
    elif place.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(place, timeout=PATIENCE) as answer:  # noqa: S310 - it is http, by the line above
                page = answer.read().decode(errors="replace").replace("%2B", "+")
        except (OSError, ValueError):
            return
        for found in re.finditer(r'href="[^"]*?(torch-[^"/#]*\+cpu-[^"/#]*\.whl)(?:#sha256=([0-9a-f]{64}))?', page):
            yield found[1], found[2] or ""


def cpu_wheel(environment: Mapping[str, str]) -> Wheel | None:
    """PyTorch without CUDA, of the locked version, for this Python and machine; None where nobody has it."""
    if environment.get("TORCH") == "cuda":
        return None
    tag, known = f"cp{sys.version_info[0]}{sys.version_info[1]}", cpu_hashes()
    fits = re.compile(rf"torch-{re.escape(version('torch'))}\+cpu-{tag}-{tag}-\w*linux\w*_{platform.machine()}\.whl")
    for place in filter(None, places(environment)):
        for name, said in wheels(place, known):
            if not fits.fullmatch(name) or not (said or name in known):
                continue
            if name in known:
                return Wheel(name, place, known[name])
            print(f"{CPU.name} has no hash of {name}: it is held to the one that {place} gives")
            return Wheel(name, place, said)
    if environment.get("TORCH") == "cpu":
        raise SetupError(
            f"TORCH=cpu, and no wheel of torch {version('torch')}+cpu for Python {tag[2]}.{tag[3:]} is to be had: name "
            "a folder or page that has one in PIP_FIND_LINKS, or leave TORCH out"
        )
    return None
