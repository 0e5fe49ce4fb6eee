"""`make setup`, with an index and folders that fail as they do elsewhere: each fault is one line."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import locked
import pytest

PROJECT = Path(__file__).resolve().parents[2]


# What goes wrong, in one line


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("error: failed to write: No space left on device (os error 28)", "the disk is full"),
        (
            "Hash mismatch for `thing==1.0`\n\nExpected:\n  sha256:bb\n\nComputed:\n",
            "another than the one that was locked",
        ),
        ("Because there is no version of thing==1.0 and you require it", "the index lacks a package"),
        ("Because thing==1.0 has no wheels with a matching Python ABI tag", "the index lacks a package"),
        ("Because thing was not found in the package registry and you", "the index lacks a package"),
        ("ERROR: No matching distribution found for thing==1.0", "the index lacks a package"),
        ("error: Request failed after 3 retries\n  Caused by: error sending request for url (http://x)", "broke off"),
        ("Failed to download `torch==2.13.0`\n  error decoding response body", "broke off"),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.", "broke off"),
        ("something that nobody foresaw", "a second run goes on"),
    ],
)
def test_what_an_installer_says_becomes_one_line(installer: ModuleType, said: str, meaning: str) -> None:
    assert meaning in installer.why(said)
    assert "\n" not in installer.why(said)


def test_a_disk_without_room_is_said_before_anything_is_downloaded(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1e9})())
    with pytest.raises(installer.SetupError, match=r"^1\.0 GB are free at .*, and 6\.8 GB are needed: free some"):
        installer.check_room("cuda")
    said = capsys.readouterr().out
    assert "up to 3.6 GB to download, 6.8 GB on disk" in said
    assert "Smaller by two thirds without CUDA" in said


def test_a_disk_that_fills_up_meanwhile_is_one_line(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(installer, "setup", full)
    assert installer.main([]) == 1
    assert capsys.readouterr().err.startswith("setup: the disk is full: free some space")


def test_what_it_is_not_told_to_do_is_one_line(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert installer.main(["all"]) == 1
    assert capsys.readouterr().err == "setup: 'all' is neither kserve nor uv\n"
    monkeypatch.setenv("TORCH", "rocm")
    assert installer.main([]) == 1
    assert capsys.readouterr().err.startswith("setup: TORCH is 'rocm'; it is cpu or cuda")


@pytest.mark.parametrize("python", [(3, 10), (3, 14)])
def test_a_python_that_is_too_old_or_too_new_is_one_line(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], python: tuple[int, int]
) -> None:
    monkeypatch.setattr(installer.sys, "version_info", (*python, 1))
    assert installer.main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("setup: Python 3.11, 3.12 or 3.13 is needed, and ")
    assert f" is 3.{python[1]}; name one: make PYTHON=" in said


def make(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", **more}
    command = ["make", "-f", str(PROJECT / "Makefile"), *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def test_make_skips_a_python_that_only_looks_like_one(tmp_path: Path) -> None:
    """As pyenv's shims do, which end with 127 where no such version is chosen."""
    shims, right = tmp_path / "shims", tmp_path / "right"
    for folder, text in (
        (shims, "echo 'pyenv: command not found' >&2; exit 127"),
        (right, f'exec {sys.executable} "$@"'),
    ):
        folder.mkdir()
        for name in ("python3.11", "python3.12", "python3.13", "python3"):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/install.py").write_text("import sys; print('installs with', sys.version_info[:2])")
    done = make(tmp_path, "setup", PATH=f"{shims}:{right}:/usr/bin:/bin")
    assert done.stdout == f"installs with {sys.version_info[:2]}\n", done.stderr


def test_make_with_a_python_that_will_not_do_is_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(tmp_path, "setup", f"PYTHON={old}")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith("setup: Python 3.11, 3.12 or 3.13 is needed, and ")
    assert str(old) in done.stderr.splitlines()[0]


# The environment


def test_what_is_whole_is_left_alone_and_what_is_not_is_made_anew(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[bool] = []

    def install(stamp: Path) -> None:
        whole.append(stamp.exists())
        stamp.unlink(missing_ok=True)
        (tmp_path / ".venv/bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / ".venv/bin/python").write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo {build}\nexit 0\n')
        (tmp_path / ".venv/bin/python").chmod(0o755)

    monkeypatch.setattr(installer, "install", install)
    build = "cuda"
    installer.setup()
    installer.setup()
    assert whole == [False], "a second time there is nothing to do"
    stamp = tmp_path / ".venv/.installed"
    made = json.loads(stamp.read_text())
    assert made["torch"] == "cuda"

    monkeypatch.setenv("TORCH", "cuda")
    installer.setup()
    assert len(whole) == 1
    monkeypatch.setenv("TORCH", "cpu")
    build = "cpu"
    installer.setup()
    assert whole == [False, True], "another build: what differs is exchanged"
    monkeypatch.delenv("TORCH")

    stamp.write_text(json.dumps({**made, "lock": hashlib.sha256().hexdigest()}))
    installer.setup()
    assert whole[2:] == [True], "another lock: what differs is exchanged"
    for told in (json.dumps({**made, "python": "3.11.0"}), "", "[]", "half {"):
        stamp.write_text(told)
        installer.setup()
    assert whole[3:] == [False] * 4, "another Python, or not known what: anew"


def wheel(path: Path) -> str:
    """Writes the wheel of `thing` 1.0; → its SHA-256."""
    info = "thing-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing.py", "x = 1\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"thing.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(installer: ModuleType, tmp_path: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an index with `thing`, which is all that is locked; the real uv installs from it."""
    command = [sys.executable, PROJECT / ".ci/install.py", "uv"]
    uv = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    folder = tmp_path / "whl/thing"
    folder.mkdir(parents=True)
    digest = wheel(folder / "thing-1.0-py3-none-any.whl")
    (folder / "index.html").write_text('<a href="thing-1.0-py3-none-any.whl">thing</a>')
    (tmp_path / "requirements.txt").write_text("thing==1.0\n")
    (tmp_path / "uv.lock").write_text(
        f'[[package]]\nname = "thing"\nversion = "1.0"\nwheels = [{{ hash = "sha256:{digest}" }}]\n'
    )
    monkeypatch.setattr(installer, "find_uv", lambda: Path(uv))
    monkeypatch.setattr(locked, "cpu_wheel", lambda _: None)
    for name in ("UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", page)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    return folder


def has_thing(folder: Path) -> bool:
    command = [folder / ".venv/bin/python", "-c", "import thing"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_what_is_locked_is_installed(installer: ModuleType, index: Path, tmp_path: Path) -> None:
    installer.install(tmp_path / ".venv/.installed")
    assert has_thing(tmp_path)
    # Half made: a file is gone, and no stamp tells that all was well.
    next((tmp_path / ".venv/lib").rglob("thing.py")).unlink()
    installer.install(tmp_path / ".venv/.installed")
    assert has_thing(tmp_path)


@pytest.mark.stack  # pip, twice
def test_pip_installs_the_same_where_uv_cannot_be_had(
    installer: ModuleType, index: Path, tmp_path: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "find_uv", lambda: None)
    monkeypatch.setenv("PIP_INDEX_URL", page)
    installer.install(tmp_path / ".venv/.installed")
    assert has_thing(tmp_path)
    (index / "thing-1.0-py3-none-any.whl").write_bytes(b"PK another")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "no-cache"))
    with pytest.raises(installer.SetupError, match=r"^a file is another than the one that was locked"):
        installer.install(tmp_path / ".venv/.installed")


def another_file(index: Path, _: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(index / "thing-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("more.py", "x = 2\n")


def no_such_version(index: Path, _: pytest.MonkeyPatch) -> None:
    (index / "index.html").write_text('<a href="thing-0.9-py3-none-any.whl">thing</a>')


def no_wheel_for_this_python(index: Path, _: pytest.MonkeyPatch) -> None:
    (index / "index.html").write_text('<a href="thing-1.0-cp39-cp39-win_amd64.whl">thing</a>')


def no_such_package(index: Path, _: pytest.MonkeyPatch) -> None:
    (index / "index.html").unlink()
    index.rename(index.parent / "other")


def nobody(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")


@pytest.mark.parametrize(
    ("harm", "meaning"),
    [
        (another_file, "a file is another than the one that was locked"),
        (no_such_version, "the index lacks a package of the lock"),
        (no_wheel_for_this_python, "the index lacks a package of the lock"),
        (no_such_package, "the index lacks a package of the lock"),
        (nobody, "the index, or a proxy before it, broke off"),
    ],
)
def test_what_uv_cannot_install_is_one_line_and_leaves_no_stamp(
    installer: ModuleType,
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    harm: Callable[[Path, pytest.MonkeyPatch], None],
    meaning: str,
) -> None:
    harm(index, monkeypatch)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.installed").write_text("")
    assert installer.main([]) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"setup: {meaning}")
    assert not (tmp_path / ".venv/.installed").exists()
