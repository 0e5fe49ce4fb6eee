"""What is installed: each package with its hash, and PyTorch in the build that is to be had."""

from __future__ import annotations

import platform
from pathlib import Path
from types import ModuleType

import locked
import pytest

from .conftest import TAG, WHEEL


def test_each_line_has_the_locks_hashes(installer: ModuleType) -> None:
    assert locked.requirements(None).splitlines() == [
        f"nvidia-cublas==13.1 ; sys_platform == 'linux' --hash=sha256:{'a' * 64}",
        f"thing==1.0 --hash=sha256:{'b' * 64}",
        f"torch==2.13.0 --hash=sha256:{'c' * 64}",
        f"triton==3.7 --hash=sha256:{'d' * 64}",
    ]


def test_without_cuda_only_pytorch_and_cudas_own_differ(installer: ModuleType) -> None:
    wheel = locked.Wheel(WHEEL, "/wheels", "e" * 64)
    assert locked.requirements(wheel).splitlines() == [
        f"thing==1.0 --hash=sha256:{'b' * 64}",
        f"torch==2.13.0+cpu --hash=sha256:{'e' * 64}",
    ]


def test_a_folder_that_has_the_wheel_is_taken_with_the_locks_hash(installer: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / WHEEL).write_bytes(b"another")
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        found = locked.cpu_wheel({name: f"/nowhere {tmp_path}/links"})
        # Not the file's own hash: the installer refuses it.
        assert found == locked.Wheel(WHEEL, f"{tmp_path}/links", "e" * 64)


@pytest.mark.parametrize(
    "name",
    [
        WHEEL.replace("2.13.0", "2.12.0"),
        WHEEL.replace("+cpu", ""),
        WHEEL.replace(TAG, "cp39"),
        WHEEL.replace(platform.machine(), "riscv64"),
        WHEEL.replace("manylinux_2_28", "win"),
    ],
)
def test_another_wheel_is_none(installer: ModuleType, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert locked.cpu_wheel({"PIP_FIND_LINKS": str(tmp_path)}) is None


def test_an_index_that_has_the_wheel_is_taken(
    installer: ModuleType, tmp_path: Path, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "whl/torch"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(f'<a href="/x/{WHEEL.replace("+", "%2B")}#sha256={"f" * 64}">torch</a>')
    found = locked.cpu_wheel({"PIP_EXTRA_INDEX_URL": page})
    assert found == locked.Wheel(WHEEL, f"{page}/torch/", "e" * 64)
    assert capsys.readouterr().out == ""
    # A wheel that no `make lock` saw.
    (tmp_path / "torch-cpu.txt").write_text("# made by make lock\n")
    found = locked.cpu_wheel({"UV_INDEX": f"pytorch={page}/"})
    assert found == locked.Wheel(WHEEL, f"{page}/torch/", "f" * 64)
    assert f"torch-cpu.txt has no hash of {WHEEL}" in capsys.readouterr().out


def test_an_index_without_a_hash_is_not_believed(installer: ModuleType, tmp_path: Path, page: str) -> None:
    folder = tmp_path / "whl/torch"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(f'<a href="{WHEEL}">torch</a>')
    (tmp_path / "torch-cpu.txt").write_text("# made by make lock\n")
    assert locked.cpu_wheel({"PIP_EXTRA_INDEX_URL": page}) is None


def test_a_build_can_be_insisted_on(installer: ModuleType, tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_bytes(b"")
    assert locked.cpu_wheel({"TORCH": "cuda", "PIP_FIND_LINKS": str(tmp_path)}) is None
    with pytest.raises(locked.SetupError, match=r"^TORCH=cpu, and no wheel of torch 2\.13\.0\+cpu for Python 3"):
        locked.cpu_wheel({"TORCH": "cpu"})


def test_a_lock_that_does_not_fit_its_list_is_one_line(
    installer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "requirements.txt").write_text("thing==2.0\ntorch==2.13.0\n")
    with pytest.raises(locked.SetupError, match=r"^requirements.txt has thing 2.0, and uv.lock has not: make lock"):
        locked.requirements(None)
    (tmp_path / "uv.lock").write_text("<<<<<<< ours\n")
    with pytest.raises(locked.SetupError, match=r"^uv.lock cannot be read"):
        locked.requirements(None)
    (tmp_path / "requirements.txt").write_text("thing==2.0\n")
    with pytest.raises(locked.SetupError, match=r"^requirements.txt pins no torch"):
        locked.version("torch")
