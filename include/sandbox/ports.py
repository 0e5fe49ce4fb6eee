"""Loopback ports: chosen once, kept in the state folder, so that addresses survive a restart."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from sandbox.errors import SandboxError

LOOPBACK = "127.0.0.1"

# Below the range from which the kernel takes ports for outgoing connections (32768 and up on Linux): a port
# that is kept must not be taken by somebody's passing connection meanwhile.
_KEPT = range(10_000, 20_000)
_PASSING = range(30_000, 32_768)
# SeaweedFS opens a gRPC port 10 000 above each of its ports, and offers no way to say which.
GRPC_DISTANCE = 10_000

# What this process has handed out, each with the UDP socket of the same number. Programs listen at TCP alone here: who
# holds that socket has the port until its program listens, whichever process asks meanwhile. The killed hold nothing.
_handed_out: dict[int, socket.socket] = {}


class Ports:
    """The ports of one sandbox by name, kept in `file` (ports.json).

    A port is chosen at random among the free ones when first asked for; after that it is always the same.
    `wanted` fixes ports by name instead, now and for later starts. `check` says whether all of them can be had.
    """

    def __init__(self, file: Path, wanted: Mapping[str, int] | None = None) -> None:
        self._file = file
        try:
            self._kept: dict[str, int] = json.loads(file.read_text())
        except FileNotFoundError:
            self._kept = {}
        except ValueError as error:
            raise SandboxError(f"{file} is not JSON ({error}); delete it, and ports are chosen anew") from error
        self._keep({**self._kept, **(wanted or {})})

    def of(self, name: str) -> int:
        """The port called `name`, chosen now if it has never been."""
        if name not in self._kept:
            self._keep({**self._kept, name: free_port(_KEPT, exclude=set(self._kept.values()))})
        return self._kept[name]

    def check(self) -> None:
        """Raises SandboxError, one line, if another program listens on one of the ports."""
        for name, port in self._kept.items():
            if not _is_free(port):
                raise SandboxError(
                    f"port {port}, kept for {name}, is taken by {_holder(port)}: "
                    f"stop that program, or choose another port with --port {name}=NUMBER "
                    f"(make up ARGS='--port {name}=NUMBER')"
                )

    def _keep(self, ports: dict[str, int]) -> None:
        if ports != self._kept:
            self._kept = ports
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace(self._file, json.dumps(ports, indent=1))


def free_port(among: range = _PASSING, exclude: set[int] | None = None) -> int:
    """A free loopback port that neither this process nor another one of this project's has handed out before; its gRPC
    neighbour is free as well."""
    for port in random.sample(among, len(among)):
        if port in (exclude or ()) or not (_is_free(port) and _is_free(port + GRPC_DISTANCE)):
            continue
        if held := _held(port):
            _handed_out[port] = held
            return port
    raise SandboxError(f"no free port between {among.start} and {among.stop}: stop other programs")


def give_back(ports: list[int]) -> None:
    """Ports of a program that has ended may be handed out again."""
    for port in ports:
        if held := _handed_out.pop(port, None):
            held.close()


def replace(file: Path, text: str, mode: int = 0o644) -> None:
    """Writes a file so that a reader sees the old text or the new, never a part."""
    passing = file.with_name(f".{file.name}.{os.getpid()}")
    passing.unlink(missing_ok=True)
    with os.fdopen(os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as out:
        out.write(text)
    passing.replace(file)


def _held(port: int) -> socket.socket | None:
    """The port's UDP socket; None where somebody has it."""
    held = socket.socket(type=socket.SOCK_DGRAM)
    try:
        held.bind((LOOPBACK, port))
    except OSError:
        held.close()
        return None
    return held


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Else the connections of a program that has just ended would count as a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if not address or address.port != port or connection.status != psutil.CONN_LISTEN:
                continue
            if connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass  # other users' processes may be hidden from us; the port is taken all the same
    return "another program"
