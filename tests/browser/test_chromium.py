"""How Chromium is found, or fetched, or asked for. No test here starts it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox import programs
from sandbox.errors import SandboxError

APT = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$1" in
  update) touch {folder}/updated; exit 0;;
esac
[ {needs_lists} = no ] || [ -e {folder}/updated ] || {{ echo "E: Unable to locate package chromium"; exit 100; }}
[ {works} = yes ] || {{ echo "E: no network"; exit 100; }}
printf '#!/bin/sh\\n' > {folder}/chromium
chmod 755 {folder}/chromium
"""


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, *, works: str = "yes", needs_lists: str = "no") -> None:
    """A Debian whose PATH is this folder, and the shell's own tools."""
    apt = folder / "apt-get"
    apt.write_text(APT.format(folder=folder, works=works, needs_lists=needs_lists))
    apt.chmod(0o755)
    for tool in ("touch", "chmod"):
        (folder / tool).symlink_to(f"/usr/bin/{tool}")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("MODEL_RELEASE_CACHE", str(folder / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def calls(folder: Path) -> list[str]:
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_the_one_on_the_path_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(tmp_path, monkeypatch)
    own = tmp_path / "chromium"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert programs.chromium() == own
    assert calls(tmp_path) == []


def test_root_installs_debians_package_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(tmp_path, monkeypatch)
    assert programs.chromium() == tmp_path / "chromium"
    assert programs.chromium() == tmp_path / "chromium"
    assert calls(tmp_path) == ["install -q -y --no-install-recommends chromium fonts-dejavu-core"]


def test_a_slim_container_gets_its_lists_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(tmp_path, monkeypatch, needs_lists="yes")
    assert programs.chromium() == tmp_path / "chromium"
    assert [call.split()[0] for call in calls(tmp_path)] == ["install", "update", "install"]


def test_what_apt_says_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(tmp_path, monkeypatch, works="no")
    with pytest.raises(SandboxError, match=r"^Chromium cannot be installed \(E: no network\): install it"):
        programs.chromium()


def test_who_is_not_root_is_told_what_root_would_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(tmp_path, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SandboxError, match=r"as root: apt-get install --no-install-recommends chromium"):
        programs.chromium()
    assert calls(tmp_path) == []


def test_elsewhere_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"no Debian .* install Chromium$"):
        programs.chromium()
