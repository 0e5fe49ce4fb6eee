"""Set-up by uv beside set-up by pip: the same packages and hashes, each into an empty place with an empty cache.

    python benchmarks/setup.py [rounds]

In turn, `rounds` times (1): what the machine does meanwhile slows both. Tells the seconds and their ratio. Needs
a network, 20 GB of disk, and some ten minutes a round.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
WITHOUT_UV = (
    "import sys; sys.argv = ['install.py']; import install; install.find_uv = lambda: None; sys.exit(install.main([]))"
)
COMMANDS = {"uv": [".ci/install.py"], "pip": ["-c", WITHOUT_UV]}


def seconds(command: list[str]) -> float:
    """A set-up from nothing: no environment, no cache."""
    with tempfile.TemporaryDirectory(prefix="setup-") as name:
        folder = Path(name) / "project"
        folder.mkdir()
        listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
        for file in listed.stdout.splitlines():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / file, folder / file)
        caches = {"UV_CACHE_DIR": f"{name}/uv", "PIP_CACHE_DIR": f"{name}/pip", "PYTHONPATH": f"{folder}/.ci"}
        begun = time.monotonic()
        subprocess.run(command, cwd=folder, env={**os.environ, **caches}, stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - begun


def main(rounds: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            found[name].append(seconds([sys.executable, *command]))
            print(f"{name} {found[name][-1]:.0f} s", flush=True)
    ratio = statistics.median(pip / uv for uv, pip in zip(found["uv"], found["pip"], strict=True))
    print(f"pip takes {ratio:.1f} times as long as uv, of {rounds} rounds the median")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
