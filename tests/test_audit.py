"""`make audit`: what is installed is held against the lock, and the database is asked where it is there."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with a lock and an environment of its own, and no network."""
    spec = importlib.util.spec_from_file_location("audit_under_test", PROJECT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LOCK", tmp_path / "requirements.txt")
    monkeypatch.setattr(module, "DIGESTS", tmp_path / "requirements.sha256")
    monkeypatch.setattr(module, "reachable", lambda: False)
    (tmp_path / "site").mkdir()
    monkeypatch.setattr(module.sys, "path", [str(tmp_path / "site")])
    return module


Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """install("name", "1.0", {"file.py": b"…"}) as pip leaves a wheel."""

    def write(name: str, version: str, content: dict[str, bytes], tag: str = "py3-none-any") -> Path:
        site = tmp_path / "site"
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        files = {
            **content,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nTag: {tag}\n".encode(),
        }
        record = ""
        for path, data in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_bytes(data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(data)}\n"
        (site / info / "RECORD").write_text(f"{record}{info}/RECORD,,\n")
        return site

    return write


def test_what_is_as_it_was_locked_has_no_fault(
    audit: ModuleType, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("Some.Thing", "1.0", {"thing.py": b"x = 1\n"})
    install("pip", "26.0", {"pip.py": b""})
    (tmp_path / "requirements.txt").write_text("# made by make lock\nsome-thing[extra]==1.0  # why\n")
    assert audit.main(["--write"]) == 0
    assert (tmp_path / "requirements.sha256").read_text().splitlines()[1].startswith("some-thing 1.0 py3-none-any ")
    assert audit.main([]) == 0
    said = capsys.readouterr().out
    assert "api.osv.dev gives no answer: nobody was asked for known vulnerabilities" in said
    assert "audit: 1 packages of the lock, 0 faults" in said
    assert audit.main(["--database"]) == 1


def _change(site: Path, install: Install) -> None:
    (site / "thing.py").write_bytes(b"x = 2\n")


def _another(site: Path, install: Install) -> None:
    install("thing", "1.0", {"thing.py": b"x = 2\n"})  # whose RECORD is its own


def _more(site: Path, install: Install) -> None:
    install("stowaway", "0.1", {"stowaway.py": b""})


def _newer(site: Path, install: Install) -> None:
    (site / "thing-1.0.dist-info").rename(site / "gone")
    install("thing", "1.1", {"thing.py": b"x = 1\n"})


def _absent(site: Path, install: Install) -> None:
    (site / "thing-1.0.dist-info").rename(site / "gone")


@pytest.mark.parametrize(
    ("meddle", "faults"),
    [
        (_change, ["thing 1.0 has other files", "thing: thing.py was changed after it was installed"]),
        (_another, ["thing 1.0 has other files than those that were locked"]),
        (_more, ["stowaway 0.1 is installed and not in the lock"]),
        (_newer, ["thing 1.1 is installed, and the lock says 1.0"]),
        (_absent, ["thing 1.0 is in the lock and not installed"]),
    ],
)
def test_each_difference_is_a_fault_and_named(
    meddle: Callable[[Path, Install], None],
    faults: list[str],
    audit: ModuleType,
    install: Install,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site = install("thing", "1.0", {"thing.py": b"x = 1\n"})
    (tmp_path / "requirements.txt").write_text("thing==1.0\n")
    audit.main(["--write"])
    meddle(site, install)
    assert audit.main([]) == 1
    said = capsys.readouterr().out
    assert [fault for fault in faults if fault not in said] == []
    assert f"{len(faults)} faults" in said


def test_another_build_is_named_and_not_compared(
    audit: ModuleType, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("torch", "2.13.0", {"torch.so": b"cuda"}, "cp311-cp311-manylinux_2_28_x86_64")
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\n")
    audit.main(["--write"])
    lines = (tmp_path / "requirements.sha256").read_text()
    (tmp_path / "requirements.sha256").write_text(lines.replace("torch 2.13.0 ", "torch 2.13.0+cpu "))
    assert audit.main([]) == 0
    assert "torch 2.13.0 (cp311-cp311-manylinux_2_28_x86_64) is another build" in capsys.readouterr().out


def test_a_lock_that_pins_nothing_or_has_no_digest(
    audit: ModuleType, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("thing", "1.0", {"thing.py": b""})
    (tmp_path / "requirements.txt").write_text("thing>=1\n")
    assert audit.main([]) == 1
    assert "requirements.txt, line 1: 'thing>=1' pins no version" in capsys.readouterr().err
    (tmp_path / "requirements.txt").write_text("thing==1.0\n")
    assert audit.main([]) == 1
    assert "thing 1.0 has no digest in requirements.sha256; make lock writes it" in capsys.readouterr().out


VULNERABLE: dict[str, Any] = {
    "dependencies": [
        {"name": "thing", "version": "1.0", "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["1.1", "2.0"]}]},
        {"name": "other", "version": "3", "vulns": [{"id": "GHSA-x", "fix_versions": []}]},
        {"name": "odd", "skip_reason": "not on PyPI"},
        {"name": "fine", "version": "1", "vulns": []},
    ]
}


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (json.dumps(VULNERABLE), 1, "thing 1.0: PYSEC-2026-1, fixed in 1.1, 2.0"),
        (json.dumps(VULNERABLE), 1, "other 3: GHSA-x, no version mends it yet"),
        (json.dumps(VULNERABLE), 1, "odd was not looked up: not on PyPI"),
        (json.dumps({"dependencies": []}), 0, "0 faults"),
        ("ConnectionError: …", 0, "nobody was asked for known vulnerabilities"),
    ],
)
def test_what_the_database_knows_is_a_fault(
    answer: str,
    code: int,
    said: str,
    audit: ModuleType,
    install: Install,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only pip-audit's answer is put in: the database is not to be had here."""
    install("thing", "1.0", {"thing.py": b""})
    (tmp_path / "requirements.txt").write_text("thing==1.0\n")
    audit.main(["--write"])
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, answer, "")

    monkeypatch.setattr(audit, "reachable", lambda: True)
    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.main(["--accept", "GHSA-y"]) == code
    assert said in capsys.readouterr().out
    assert asked[0][-2:] == ["--ignore-vuln", "GHSA-y"]


def test_pip_audit_takes_what_it_is_given(tmp_path: Path) -> None:
    """The real program, which finds nobody to ask."""

    (tmp_path / "requirements.txt").write_text("requests==2.0\n")
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(tmp_path / "requirements.txt"), "--no-deps"]
    command += ["--disable-pip", "--vulnerability-service", "osv", "--osv-url", "http://127.0.0.1:9/v1/query"]
    command += ["--timeout", "2", "--progress-spinner", "off", "--format", "json", "--ignore-vuln", "X"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "usage:" not in done.stderr


def test_the_projects_digests_are_of_its_lock() -> None:
    """Each package of requirements.txt has a line, of its version."""
    spec = importlib.util.spec_from_file_location("audit_of_the_project", PROJECT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    lock = module.locked(module.LOCK.read_text())
    digests = module.read(module.DIGESTS.read_text())
    assert {name: one.version.partition("+")[0] for name, one in digests.items()} == {
        name: version.partition("+")[0] for name, version in lock.items()
    }
