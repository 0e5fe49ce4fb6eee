"""The virtual environment with every package of the lock: `make setup`, and `make lock`.

    python .ci/install.py          what is missing, into .venv; a second call finds everything there, in a blink
    python .ci/install.py kserve   KServe's model server, in an environment of its own beside that one
    python .ci/install.py uv       the path of uv, which is installed where it is missing

Needs a Python from 3.11 to 3.13 and nothing else. uv downloads and installs; where it cannot be had, pip does. Both are
given the same list: the versions of requirements.txt, each with the hashes of uv.lock, which they insist on.

PyTorch has two builds of each version. The one without CUDA is far smaller, and taken where a wheel of the locked
version lies in PIP_FIND_LINKS or UV_FIND_LINKS, in an index of PIP_EXTRA_INDEX_URL or UV_INDEX, or in PyTorch's own
index; else PyPI's comes, with the packages of CUDA. TORCH=cpu insists on the first, TORCH=cuda on the second.
torch-cpu.txt holds the hashes of the smaller build's wheels; one that the lock never saw is held to the hash that its
index gives.

What was interrupted leaves no stamp (.venv/.installed), and its .venv is made anew: from the installer's cache, so that
only what was not yet downloaded is downloaded. Exit code 1, with the reason in one line, for whatever cannot be done.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import locked
from locked import SetupError, Wheel

VENV = locked.ROOT / os.environ.get("VENV", ".venv")
CACHE = locked.ROOT / ".cache"
# Of KServe's own server, which cannot live beside Airflow (runtime: kserve).
KSERVE_VENV = VENV.with_name(f"{VENV.name}-kserve")

# Of the Python that environments are made of, should this be an environment's own.
PYTHON: str = getattr(sys, "_base_executable", sys.executable)
UV = "0.13.9"
OLDEST_UV = (0, 9)  # as pyproject.toml says
# What installers say, and what it means.
MEANINGS = {
    r"No space left on device|os error 28": (
        "the disk is full: free some space, or put the caches elsewhere (UV_CACHE_DIR, PIP_CACHE_DIR)"
    ),
    r"[Hh]ash mismatch|DO NOT MATCH THE HASHES": (
        "a file is another than the one that was locked: its index replaces files, or a proxy changes them"
    ),
    r"no version of|not found in the package registry|no wheels|No matching distribution|no usable wheels": (
        "the index lacks a package of the lock, or its wheel for this Python: it is named above; UV_DEFAULT_INDEX or "
        "PIP_INDEX_URL names another index"
    ),
    r"error sending request|onnect|[Tt]imed? ?out|dns|response body|Failed to (fetch|download|extract)|50\d |EOF": (
        "the index, or a proxy before it, broke off: what came so far is kept, so run it again"
    ),
    "": "the reason is above; what came so far is kept, so a second run goes on from there",
}
# What uv lists when all is done: a line for each of three hundred packages.
INSTALLED = re.compile(rb"^ (\x1b\[\d+m)*[+~-].*\n", re.MULTILINE)
# GB to download, and on disk afterwards: measured on x86-64. A test holds the first against uv.lock.
SIZES = {"cpu": (0.8, 2.8), "cuda": (3.6, 6.8)}


def find_uv() -> Path | None:
    """uv: the one on the PATH if it is new enough, else the one in .cache, put there by pip; None if it cannot be."""
    on_path = shutil.which("uv")
    if on_path:
        said = subprocess.run([on_path, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.match(r"uv (\d+)\.(\d+)", said)
        if found and (int(found[1]), int(found[2])) >= OLDEST_UV:
            return Path(on_path)
    own = CACHE / f"uv-{UV}"
    if not (own / "bin/uv").exists():
        # No environment of its own: Debian's Python may have pip and no venv.
        print(f"Installing uv {UV}, which installs the rest", flush=True)
        command = [
            PYTHON,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--quiet",
            "--no-deps",
            "--root-user-action=ignore",
        ]
        part = CACHE / f"uv-{UV}.part"
        shutil.rmtree(part, ignore_errors=True)
        done = subprocess.run([*command, "--target", str(part), f"uv=={UV}"], check=False)
        if done.returncode or not (part / "bin/uv").exists():
            return None
        shutil.rmtree(own, ignore_errors=True)
        part.rename(own)
    return own / "bin/uv"


def needed_uv() -> str:
    if (uv := find_uv()) is None:
        raise SetupError(f"uv cannot be had: {PYTHON} -m pip install uv=={UV} fails, as said above")
    return str(uv)


def pips_index() -> str | None:
    """The index that pip is told to use, by its files or by PIP_INDEX_URL: uv reads neither."""
    command = [PYTHON, "-m", "pip", "config", "list"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = dict(re.findall(r"^(\S+)\.index-url='(.*)'$", said, re.MULTILINE))
    return found.get(":env:") or found.get("install") or found.get("global")


def run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Runs it and shows what it says, as it says it; → its exit code and its last words."""
    if sys.stderr.isatty():
        ours, theirs = os.openpty()  # else it would think that nobody looks, and show no progress
    else:
        ours, theirs = os.pipe()
    said = part = b""
    with subprocess.Popen(command, env=environment, stderr=theirs) as process:
        os.close(theirs)
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # a terminal says so when its last writer is gone
                break
            if not chunk:
                break
            said = (said + chunk)[-20000:]
            shown = INSTALLED.sub(b"", part + chunk)
            # A line that may become one of the list waits for its end.
            begun = shown.rfind(b"\n") + 1
            part = shown[begun:] if shown[begun : begun + 1] == b" " else b""
            sys.stderr.buffer.write(shown[: len(shown) - len(part)])
            sys.stderr.buffer.flush()
        sys.stderr.buffer.write(part)
    os.close(ours)
    return process.returncode, said.decode(errors="replace")


def why(said: str) -> str:
    """What an installer's last words mean, in one line."""
    return next((meaning for pattern, meaning in MEANINGS.items() if re.search(pattern, said)), MEANINGS[""])


def check_room(build: str) -> None:
    """Says what will be downloaded; refuses where the disk cannot hold it."""
    download, there = SIZES[build]
    kind = "PyTorch without CUDA" if build == "cpu" else "PyTorch with CUDA"
    print(f"{kind}: up to {download} GB to download, {there} GB on disk, once", flush=True)
    if build == "cuda":
        print(
            f"  Smaller by two thirds without CUDA, where this machine reaches {locked.CPU_INDEX} or a folder that "
            "PIP_FIND_LINKS names has that wheel"
        )
    VENV.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(VENV.parent).free / 1e9
    if free < there:
        raise SetupError(
            f"{free:.1f} GB are free at {VENV.parent}, and {there} GB are needed: free some, or set VENV to a folder "
            "on another disk"
        )


def lay(venv: Path, listed: Path, wheel: Wheel | None, whole: bool) -> None:
    """Makes the environment `venv` hold what `listed` names, and nothing else; `whole` says that it is one already."""
    places = ["--find-links", wheel.place] if wheel else []
    # Only what these name is looked at: the user's folders have had their turn.
    environment = {key: value for key, value in os.environ.items() if key not in ("UV_FIND_LINKS", "PIP_FIND_LINKS")}
    uv = find_uv()
    if uv:
        environment.setdefault("UV_HTTP_RETRIES", "6")
        if not any(name in environment for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")) and (index := pips_index()):
            environment["UV_DEFAULT_INDEX"] = index
        make = [str(uv), "venv", "--quiet", "--clear", "--no-project", "--python", PYTHON, str(venv)]
        sync = [str(uv), "pip", "sync", "--python", str(venv / "bin/python"), "--require-hashes", *places, str(listed)]
    else:
        print("uv cannot be had: pip installs instead, which takes minutes", flush=True)
        environment["PIP_CONSTRAINT"] = ""
        make = [PYTHON, "-m", "venv", "--clear", str(venv)]
        sync = [str(venv / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        sync += ["--progress-bar", "on", "--require-hashes", *places, "--requirement", str(listed)]
    for command in [sync] if whole and uv else [make, sync]:
        code, said = run(command, environment)
        if code and command is make and not uv:
            raise SetupError(f"{PYTHON} makes no virtual environment: on Debian, apt-get install python3-venv")
        if code:
            raise SetupError(why(said))


def install(stamp: Path) -> None:
    wheel = locked.cpu_wheel(os.environ)
    build = "cpu" if wheel else "cuda"
    check_room(build)
    CACHE.mkdir(exist_ok=True)
    listed = CACHE / "requirements.txt"
    listed.write_text(locked.requirements(wheel), encoding="utf-8")
    whole = stamp.exists()
    stamp.unlink(missing_ok=True)
    lay(VENV, listed, wheel, whole)
    purelib = next((VENV / "lib").glob("python3.*/site-packages"))
    (purelib / "model_release.pth").write_text(f"{locked.ROOT}/plugins\n{locked.ROOT}/include\n", encoding="utf-8")


def stamped(stamp: Path) -> dict[str, str]:
    """What the environment was made of; nothing where it is not whole."""
    try:
        return dict(json.loads(stamp.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def setup() -> None:
    found = sys.version_info[:2]
    if not (3, 11) <= found <= (3, 13):
        raise SetupError(
            f"Python 3.11, 3.12 or 3.13 is needed, and {PYTHON} is {found[0]}.{found[1]}; name one: "
            "make PYTHON=/path/to/python3.12 …"
        )
    if os.environ.get("TORCH", "cpu") not in ("cpu", "cuda"):
        raise SetupError(f"TORCH is {os.environ['TORCH']!r}; it is cpu or cuda, or nothing for whichever is to be had")
    stamp = VENV / ".installed"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once wait for each other
        digest = hashlib.sha256(
            b"".join(path.read_bytes() for path in (locked.LOCK, locked.LISTED, locked.CPU))
        ).hexdigest()
        there = stamped(stamp)
        wanted = {"lock": digest, "python": platform.python_version(), "torch": os.environ.get("TORCH")}
        same = all(there.get(key) == value for key, value in wanted.items() if value)
        if same and (VENV / "bin/python").exists():
            return
        print(f"Setting up {VENV.name} by Python {wanted['python']}: which PyTorch is to be had?", flush=True)
        if there.get("python") != wanted["python"]:
            stamp.unlink(missing_ok=True)  # made by another Python, or by an older way of making it: anew
        fetch = [PYTHON, "-c", "from sandbox import programs; programs.prometheus()"]
        path = {**os.environ, "PYTHONPATH": f"{locked.ROOT}/include"}
        # It comes from elsewhere, so it need not wait; what it lacks is said by sandbox.programs below.
        with subprocess.Popen(fetch, env=path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            install(stamp)
        if subprocess.run([VENV / "bin/python", "-m", "sandbox.programs"], check=False).returncode:
            raise SetupError("a program that the sandbox starts is missing: it is named above")
        code = "import importlib.metadata as m; print('cpu' if '+cpu' in m.version('torch') else 'cuda')"
        done = subprocess.run([VENV / "bin/python", "-c", code], capture_output=True, text=True, check=True)
        stamp.write_text(json.dumps({**wanted, "torch": done.stdout.strip()}) + "\n", encoding="utf-8")


def setup_kserve() -> None:
    """The environment of KServe's own server, beside the other; in a blink where it is there."""
    stamp = KSERVE_VENV / ".installed"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "setup-kserve.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = {"lock": hashlib.sha256(locked.KSERVE.read_bytes()).hexdigest(), "python": platform.python_version()}
        if stamped(stamp) == wanted and (KSERVE_VENV / "bin/python").exists():
            return
        print("Installing KServe's model server beside Airflow: 0.3 GB, and PyTorch once more", flush=True)
        wheel = locked.cpu_wheel(os.environ)
        listed = CACHE / "requirements-kserve.txt"
        listed.write_text(locked.kserve_requirements(wheel), encoding="utf-8")
        stamp.unlink(missing_ok=True)
        lay(KSERVE_VENV, listed, wheel, whole=False)
        stamp.write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["uv"]:
            CACHE.mkdir(exist_ok=True)
            print(needed_uv())
        elif arguments == ["kserve"]:
            setup_kserve()
        elif arguments:
            raise SetupError(f"{' '.join(arguments)!r} is neither kserve nor uv")
        else:
            setup()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; what came so far is kept, so a second run goes on from there", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"setup: {why(str(error)) if error.errno == 28 else error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
