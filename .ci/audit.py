"""Whether the packages that this project runs on are those that were tested, and whether they are known to be unsafe.

    python .ci/audit.py             `make audit`
    python .ci/audit.py --write     part of `make lock`

Asks the OSV database by pip-audit about every version in requirements.txt, where it can be reached. Whether or not it
can, what is installed is held against the lock: each package has exactly the locked version, nothing else is installed,
every file is what its package says (RECORD), and all of them together are what requirements.sha256 says, which was
written when the lock was made.

What it does not do: without the database it knows of no vulnerability, and says so. A package of another build (another
platform's wheel, PyTorch with or without CUDA) cannot be compared; it is named. The lock says what was tested, not that
its makers are honest, and programs that no Python package brings (Prometheus, the containers' base images) are not in
it. Exit code 0: nothing found; 1: something found, or what was asked for cannot be done.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.txt"
DIGESTS = ROOT / "requirements.sha256"

#: What makes environments, and is in none of the locks.
TOOLS = frozenset({"pip", "setuptools", "wheel", "uv"})
DATABASE = ("api.osv.dev", 443)
PATIENCE = 5.0  # seconds, for the first word of the database
LONGEST = 300.0  # seconds, for all of its answers

# Written by the installer, or made of this machine's paths: the same package has others elsewhere.
_OWN = re.compile(r"\.dist-info/(?!entry_points\.txt$)|^\.\./|\.pyc$")
_LOCKED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==([^\s;\\]+)")


@dataclass(frozen=True)
class Package:
    """An installed package: its version with its local label (`2.13.0+cpu`), the wheel's tags, the digest over names
    and contents of its files, and those files that are not what its RECORD says."""

    version: str
    tags: str
    digest: str
    damaged: tuple[str, ...] = ()

    @property
    def build(self) -> tuple[str, str]:
        return self.version, self.tags


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """{name: version} of requirements.txt. Raises ValueError for a line that pins nothing."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        if not said:
            continue
        pinned = _LOCKED.match(said)
        if pinned is None:
            raise ValueError(f"line {number}: {said!r} pins no version; name==version does")
        found[normal(pinned[1])] = pinned[2]
    return found


def inspect(package: Distribution) -> Package:
    """Reads every file of an installed package."""
    lines, damaged = [], []
    for file in package.files or ():
        if file.hash is None or file.hash.mode != "sha256":
            continue
        try:
            with Path(str(file.locate())).open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").digest()
        except OSError:
            digest = b""
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value.rstrip("="):
            damaged.append(str(file))
        if not _OWN.search(str(file)):
            lines.append(f"{file}\0{digest.hex()}\n")
    tags = re.findall(r"^Tag: (\S+)$", package.read_text("WHEEL") or "", re.MULTILINE)
    return Package(
        package.version,
        ",".join(sorted(tags)) or "-",
        hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
        tuple(damaged),
    )


def installed(path: Sequence[str] | None = None) -> dict[str, Package]:
    """{name: package} of this environment (or of the folders in `path`)."""
    there = {normal(one.name): one for one in reversed(list(distributions(path=list(path or sys.path))))}
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(there, pool.map(inspect, there.values()), strict=True))


def written(packages: Mapping[str, Package], lock: Mapping[str, str]) -> str:
    """requirements.sha256: one line for each package of the lock."""
    lines = [
        f"{name} {packages[name].version} {packages[name].tags} {packages[name].digest}"
        for name in sorted(lock.keys() & packages.keys())
    ]
    head = "# Made by 'make lock': name, version, wheel's tags, SHA-256 over names and contents of its files.\n"
    return head + "\n".join(lines) + "\n"


def read(text: str) -> dict[str, Package]:
    """requirements.sha256 back."""
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {name: Package(version, tags, digest) for name, version, tags, digest in rows}


def compare(
    lock: Mapping[str, str], packages: Mapping[str, Package], digests: Mapping[str, Package]
) -> Iterator[tuple[bool, str]]:
    """(whether it is a fault, sentence) of everything that is not as the lock says."""
    for name, version in lock.items():
        package = packages.get(name)
        if package is None:
            yield True, f"{name} {version} is in the lock and not installed"
        elif package.version.partition("+")[0] != version.partition("+")[0]:
            yield True, f"{name} {package.version} is installed, and the lock says {version}"
        elif name not in digests or digests[name].version.partition("+")[0] != version.partition("+")[0]:
            yield True, f"{name} {version} has no digest in {DIGESTS.name}; make lock writes it"
        elif digests[name].build != package.build:
            yield False, f"{name} {package.version} ({package.tags}) is another build than the locked: not compared"
        elif digests[name].digest != package.digest:
            yield True, f"{name} {package.version} has other files than those that were locked"
    for name in sorted(packages.keys() - lock.keys() - TOOLS):
        yield True, f"{name} {packages[name].version} is installed and not in the lock"
    for name, package in packages.items():
        if package.damaged:
            more = f" and {len(package.damaged) - 1} more" if len(package.damaged) > 1 else ""
            yield True, f"{name}: {package.damaged[0]}{more} was changed after it was installed"


def reachable() -> bool:
    """Whether the vulnerability database can be reached at all."""
    try:
        socket.create_connection(DATABASE, PATIENCE).close()
    except OSError:
        return False
    return True


def known_vulnerabilities(accepted: Iterable[str]) -> list[str] | None:
    """What the database knows of the lock's versions, one sentence for each; None where it gives no answer."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--timeout", "15", "--progress-spinner", "off", "--format", "json"]
    for one in accepted:
        command += ["--ignore-vuln", one]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    found = []
    for package in answer["dependencies"]:
        if "skip_reason" in package:
            found.append(f"{package['name']} was not looked up: {package['skip_reason']}")
        for one in package.get("vulns", ()):
            cure = f"fixed in {', '.join(one['fix_versions'])}" if one["fix_versions"] else "no version mends it yet"
            found.append(f"{package['name']} {package['version']}: {one['id']}, {cure}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {DIGESTS.name} of what is installed here")
    parser.add_argument("--database", action="store_true", help="fail where the vulnerability database is away")
    parser.add_argument("--accept", action="append", default=[], metavar="ID", help="a vulnerability to live with")
    options = parser.parse_args(arguments)
    try:
        lock = locked(LOCK.read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"audit: {LOCK.name}, {error}", file=sys.stderr)
        return 1
    packages = installed()
    if options.write:
        DIGESTS.write_text(written(packages, lock), encoding="utf-8")
        return 0
    findings = list(compare(lock, packages, read(DIGESTS.read_text(encoding="utf-8")) if DIGESTS.exists() else {}))
    faults = [said for bad, said in findings if bad]
    print(*(f"audit: {said}" for _, said in findings), sep="\n", end="\n" if findings else "")
    known = known_vulnerabilities(options.accept) if reachable() else None
    if known is None:
        print(f"audit: {DATABASE[0]} gives no answer: nobody was asked for known vulnerabilities")
        faults += ["the database is away"] if options.database else []
    else:
        print(*(f"audit: {said}" for said in known), sep="\n", end="\n" if known else "")
        faults += known
    print(f"audit: {len(lock)} packages of the lock, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
