"""`make setup` in a project of two packages, with an index of its own."""

from __future__ import annotations

import functools
import http.server
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import install
import locked
import pytest

TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"
WHEEL = f"torch-2.13.0+cpu-{TAG}-{TAG}-manylinux_2_28_{platform.machine()}.whl"


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, in a project of two packages."""
    for module, name, value in (
        (locked, "ROOT", ""),
        (locked, "LOCK", "uv.lock"),
        (locked, "LISTED", "requirements.txt"),
        (locked, "CPU", "torch-cpu.txt"),
        (install, "VENV", ".venv"),
        (install, "CACHE", ".cache"),
    ):
        monkeypatch.setattr(module, name, tmp_path / value)
    monkeypatch.setattr(locked, "CPU_INDEX", "http://127.0.0.1:9/nobody")
    (tmp_path / "requirements.txt").write_text(
        "# made by make lock\nnvidia-cublas==13.1 ; sys_platform == 'linux'\nthing==1.0\ntorch==2.13.0\ntriton==3.7\n"
    )
    (tmp_path / "uv.lock").write_text(
        "".join(
            f'[[package]]\nname = "{name}"\nversion = "{version}"\nwheels = [{{ hash = "sha256:{digit * 64}" }}]\n'
            for name, version, digit in (
                ("nvidia-cublas", "13.1", "a"), ("thing", "1.0", "b"), ("torch", "2.13.0", "c"), ("triton", "3.7", "d"),
            )
        )
    )  # fmt: skip
    (tmp_path / "torch-cpu.txt").write_text(f"# made by make lock\n{'e' * 64}  {WHEEL}\n")
    for name in ("TORCH", "UV_FIND_LINKS", "PIP_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return install


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """The address of a package index's folder `whl`, below tmp_path."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/whl"
        server.shutdown()
