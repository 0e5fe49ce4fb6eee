"""`make setup`: the virtual environment of uv.lock in .venv, and the programs that no package brings.

Run by the Python that is to be used, with nothing installed. Run again it does nothing, unless the lock, the Python or
the build of PyTorch is another one: then the environment is made anew. What was downloaded is kept in the cache of uv
or pip, so a second try goes on where the first one ended.

uv installs it, from the package index like everything else; where uv cannot be had, pip does the same from
requirements.txt, which is the same set. PyTorch has two builds. Where a CPU wheel of the locked version lies in a
folder that PIP_FIND_LINKS or UV_FIND_LINKS names, or in PyTorch's own CPU index, it is taken; else PyPI's own, which
brings CUDA. All other packages are equal in both.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
VENV = PROJECT / ".venv"
STAMP = VENV / ".installed"
LOCK = PROJECT / "uv.lock"
UV = "0.13.9"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GIB = 1024**3
# What a build takes on the disk while it is installed, downloads included, in GiB; and the download alone.
SIZES = {"cpu": (6, "about 0.8 GB"), "cuda": (15, "about 3.5 GB")}


class SetupError(Exception):
    """One line: what is wrong, and what would be right."""


def main() -> None:
    """Makes it, or says in one line why not."""
    version = sys.version_info[:2]
    if not (3, 11) <= version <= (3, 13):
        raise SetupError(
            f"Python 3.11, 3.12 or 3.13 is needed, and {sys.executable} is {version[0]}.{version[1]}; "
            "name one: make PYTHON=/path/to/python3.11 …"
        )
    wheel = _cpu_wheel(version)
    build = "cpu" if wheel else "cuda"
    wanted = hashlib.sha256(LOCK.read_bytes() + f"{sys.version} {build}".encode()).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    STAMP.unlink(missing_ok=True)
    needed, download = SIZES[build]
    _check_room(needed)
    print(f"Setting up .venv with Python {version[0]}.{version[1]}: {download} to download, once.", flush=True)
    if build == "cuda":
        print(
            "PyTorch comes from the package index with CUDA. Its CPU build is a fifth of that: put the wheel "
            f"torch-{_locked('torch')}+cpu of {CPU_INDEX} into a folder, and name it in PIP_FIND_LINKS.",
            flush=True,
        )
    uv = _uv()
    if uv:
        _by_uv(uv, wheel)
    else:
        _by_pip(wheel)
    _put_on_path()
    _run([VENV / "bin/python", "-m", "sandbox.programs"])
    STAMP.write_text(wanted)


def _by_uv(uv: Path, wheel: str | None) -> None:
    """Exactly the lock's packages, each held against its hash. A CPU build of PyTorch comes after them, without what
    only CUDA needs."""
    sync: list[str | Path] = [uv, "sync", "--frozen", "--python", sys.executable]
    if wheel is None:
        _run(sync)
        return
    for name in ["torch", *_only_for_cuda()]:
        sync += ["--no-install-package", name]
    _run(sync)
    _run([uv, "pip", "install", "--python", VENV / "bin/python", "--no-deps", *_where(wheel)])


def _by_pip(wheel: str | None) -> None:
    print("uv cannot be had here: pip installs the same set, in some minutes.", flush=True)
    _run([sys.executable, "-m", "venv", "--clear", VENV])
    pip: list[str | Path] = [VENV / "bin/python", "-m", "pip", "install", "--disable-pip-version-check"]
    if wheel is not None:
        _run([*pip, "--no-deps", *_where(wheel)])
    _run([*pip, "--requirement", PROJECT / "requirements.txt"])


def _where(wheel: str) -> list[str]:
    """A wheel's file, or the version at PyTorch's own index."""
    return [wheel] if wheel.endswith(".whl") else [wheel, "--index-url", CPU_INDEX]


def _uv() -> Path | None:
    """uv: the one on the PATH if it is new enough, else a package like any other, in .cache/uv; None where neither."""
    found = shutil.which("uv")
    if found:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        match = re.search(r"(\d+)\.(\d+)", said)
        if match and (int(match[1]), int(match[2])) >= (0, 9):
            return Path(found)
    folder = PROJECT / ".cache/uv"
    uv = folder / "bin/uv"
    if uv.is_file():
        return uv
    try:
        _run([sys.executable, "-m", "venv", "--clear", folder])
        _run([folder / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", f"uv=={UV}"])
    except SetupError:
        return None
    return uv


def _cpu_wheel(version: tuple[int, int]) -> str | None:
    """The CPU build of the locked PyTorch for this Python: a file, or what to ask the CPU index for; None: PyPI's."""
    torch, tag = _locked("torch"), f"cp{version[0]}{version[1]}"
    machine = os.uname().machine
    folders = " ".join(os.environ.get(name, "") for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS")).replace(",", " ")
    for folder in folders.split():
        for file in sorted(Path(folder.removeprefix("file://")).glob(f"torch-{torch}+cpu-{tag}-*_{machine}.whl")):
            return str(file)
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=3) as answer:
            page = answer.read().decode(errors="replace")
    except (urllib.error.URLError, OSError, ValueError):
        return None
    return f"torch=={torch}+cpu" if re.search(rf"torch-{torch}(\+|%2B)cpu-{tag}-\S*{machine}\.whl", page) else None


def _locked(name: str) -> str:
    return next(str(one["version"]) for one in _packages() if one["name"] == name)


def _only_for_cuda() -> list[str]:
    """What PyPI's build of PyTorch brings and a CPU build does not need."""
    names = {str(one["name"]) for one in _packages()}
    return sorted(name for name in names if name.startswith(("nvidia-", "cuda-")) or name == "triton")


def _packages() -> list[dict[str, object]]:
    try:
        packages: list[dict[str, object]] = tomllib.loads(LOCK.read_text(encoding="utf-8"))["package"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise SetupError(f"{LOCK.name} cannot be read ({error}): git checkout {LOCK.name}") from error
    return packages


def _check_room(needed: int) -> None:
    free = shutil.disk_usage(PROJECT).free
    if free < needed * GIB:
        raise SetupError(f"{needed} GB of room are needed below {PROJECT}, and {free / GIB:.1f} GB are free")


def _put_on_path() -> None:
    """plugins/ and include/ are found by whatever Python of this environment runs."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    where = subprocess.run([VENV / "bin/python", "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    Path(where, "model_release.pth").write_text(f"{PROJECT / 'plugins'}\n{PROJECT / 'include'}\n", encoding="utf-8")


def _run(argv: list[str | Path]) -> None:
    """The program shows its own progress and says its own troubles."""
    env = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(VENV), "PYTHONPATH": str(PROJECT / "include")}
    env.pop("VIRTUAL_ENV", None)
    try:
        code = subprocess.run(argv, cwd=PROJECT, env=env, check=False).returncode
    except OSError as error:
        raise SetupError(f"{argv[0]} cannot be run: {error}") from error
    if code:
        shown = " ".join(Path(argv[0]).name if word is argv[0] else str(word) for word in argv[:3])
        raise SetupError(f"`{shown}` ended with code {code}, for the reason above; run it again, it goes on from there")


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"make setup: {error}")
    except KeyboardInterrupt:
        sys.exit("make setup: stopped; run it again, it goes on from there")
