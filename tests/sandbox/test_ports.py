from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.errors import SandboxError
from sandbox.ports import Ports, free_port, give_back, replace


def test_ports_survive_a_restart(tmp_path: Path) -> None:
    first = Ports(tmp_path / "ports.json")
    chosen = {name: first.of(name) for name in ("envoy", "s3", "prometheus")}
    assert len(set(chosen.values())) == 3
    again = Ports(tmp_path / "ports.json")
    assert {name: again.of(name) for name in chosen} == chosen
    again.check()


def test_a_wanted_port_is_taken_and_kept(tmp_path: Path) -> None:
    wanted = free_port()
    assert Ports(tmp_path / "ports.json", {"envoy": wanted}).of("envoy") == wanted
    assert Ports(tmp_path / "ports.json").of("envoy") == wanted


def test_a_port_that_is_taken_is_one_line_with_what_to_do(tmp_path: Path) -> None:
    ports = Ports(tmp_path / "ports.json")
    port = ports.of("s3")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(SandboxError) as refused:
            ports.check()
    line = str(refused.value)
    assert line.startswith(f"port {port}, kept for s3, is taken by ")
    assert "(process " in line
    assert "stop that program, or choose another port with --port s3=NUMBER" in line
    assert "\n" not in line
    ports.check()


def test_no_port_is_handed_out_twice_until_given_back() -> None:
    handed = [free_port() for _ in range(200)]
    assert len(set(handed)) == 200
    give_back(handed)


def test_no_port_is_handed_out_by_two_processes_at_once() -> None:
    """Servers take seconds until they listen."""
    port = free_port(range(9_000, 10_000))  # where nobody else looks for one
    asking = f"from sandbox.ports import free_port; print(free_port(range({port}, {port + 1})))"

    def asked() -> str:
        done = subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True, timeout=60)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    assert "no free port between" in asked()
    give_back([port])
    assert asked() == str(port)
    again = free_port(range(port, port + 1))
    assert again == port, "who has ended holds nothing"
    give_back([port])


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("{")
    with pytest.raises(SandboxError, match=r"ports.json is not JSON .* delete it, and ports are chosen anew"):
        Ports(tmp_path / "ports.json")


def test_replace_keeps_the_mode_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    replace(file, "old", mode=0o600)
    replace(file, "new", mode=0o600)
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
