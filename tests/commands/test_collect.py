"""`python -m model_release collect`: events as KServe's agent sends them, and what is kept of them."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import requests
from tests.patience import LIMIT, until

from model_release.build.samples import chosen
from model_release.cluster.pairs import LARGEST_PICTURE
from model_release.commands import collect as collecting
from model_release.commands import main
from model_release.release.collect import LARGEST_BODY, REQUEST, Collector, PictureFolder

PNG, JPEG = b"\x89PNG\r\n\x1a\n" + b"p" * 60, b"\xff\xd8\xff\xe0" + b"j" * 60
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
PROJECT = Path(__file__).resolve().parents[2]


def event(**more: str) -> dict[str, str]:
    """Headers as the agent's Go writes them."""
    said = {"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "http://localhost:9081/", "Ce-Type": REQUEST}
    return said | {"Ce-Namespace": "models", "Ce-Inferenceservicename": "faces", "Ce-Endpoint": "", **more}


def v1(picture: bytes, key: str = "data") -> bytes:
    return json.dumps({"instances": [{key: base64.b64encode(picture).decode()}]}).encode()


@dataclass
class Clock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Memory:
    content: dict[str, bytes] = field(default_factory=dict)

    def names(self) -> list[str]:
        return list(self.content)

    def write_bytes(self, key: str, content: bytes, content_type: str) -> None:
        self.content[key] = content

    def remove(self, names: list[str]) -> None:
        for name in names:
            del self.content[name]


def test_pictures_are_spread_over_the_time_and_no_more_than_asked_for_are_kept() -> None:
    clock, place = Clock(), Memory({"README.md": b"not ours"})
    collector = Collector(place, 20, timedelta(hours=10), chance=random.Random(1), now=clock)
    taken = []
    for second in range(0, 24 * 3600, 60):
        clock.now = NOON + timedelta(seconds=second)
        if collector.wants(event()) and collector.take(v1(PNG + str(second).encode())):
            taken.append(clock.now)
        collector.tidy()  # as the command does each minute
        ours = sorted(name for name in place.content if name != "README.md")
        assert len(ours) <= 20
        assert ours[0][:15] >= f"{clock.now - timedelta(hours=10):%Y%m%dT%H%M%S}"
    gaps = [(later - one) / timedelta(minutes=1) for one, later in pairwise(taken)]
    assert 15 <= min(gaps) < 20 < 40 < max(gaps) <= 46, "half of half an hour to one and a half of it"
    assert len(set(gaps)) > 10
    assert "README.md" in place.content


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (v1(PNG), ("png", PNG)),
        (v1(JPEG, "image_bytes"), ("jpg", JPEG)),
        (PNG, ("png", PNG)),
        (json.dumps({"inputs": "data:image/png;base64," + base64.b64encode(PNG).decode()}).encode(), ("png", PNG)),
        (json.dumps({"inputs": [{"data": [base64.b64encode(PNG).decode()]}]}).encode(), ("png", PNG)),
        (v1(b"RIFF\0\0\0\0WEBP" + PNG), ("webp", b"RIFF\0\0\0\0WEBP" + PNG)),
        (v1(b"#!/bin/sh"), None),
        (v1(PNG + b"0" * LARGEST_PICTURE), None),
        (b"{", None),
        (b"[" * 100_000, None),
        (b"[]", None),
        (b'{"instances": [7]}', None),
        (b'{"instances": []}', None),
        (b'{"instances": [{"data": "%%"}]}', None),
        (b"\xff\xfe\x00", None),
    ],
)  # fmt: skip
def test_the_first_picture_of_a_request_is_kept_and_nothing_else(body: bytes, kept: tuple[str, bytes] | None) -> None:
    place = Memory()
    assert Collector(place, now=Clock()).take(body) == (kept is not None)
    assert [(name.rpartition(".")[2], content) for name, content in place.content.items()] == ([kept] if kept else [])


def test_a_place_that_is_away_is_not_asked_for_each_request() -> None:
    class Away(Memory):
        def write_bytes(self, key: str, content: bytes, content_type: str) -> None:
            raise OSError("no space left")

    collector = Collector(Away(), now=Clock())
    with pytest.raises(OSError, match="no space"):
        collector.take(v1(PNG))
    assert not collector.wants(event())


def test_what_a_shadow_sends_once_more_is_not_kept_anew() -> None:
    """The logger tells of the shadow's requests, too: a user's picture would be young again with each release."""
    clock, place = Clock(), Memory()
    collector = Collector(place, 2, timedelta(hours=10), now=clock)
    pictures = [PNG + bytes([number]) for number in range(4)]
    for number, picture in enumerate(pictures):
        clock.now = NOON + timedelta(hours=8 * number)
        assert collector.wants(event())
        assert collector.take(v1(picture))
        assert not collector.take(v1(picture))
        assert not collector.take(v1(pictures[max(number - 1, 0)]))
        assert list(place.content.values())[-1] == picture
    again = Collector(place, 2, timedelta(hours=10), now=clock)
    again.tidy()
    assert not again.take(v1(pictures[3])), "one that is started again goes on with what is there"
    for _ in range(2):  # it is removed, and then forgotten
        clock.now += timedelta(hours=11)
        again.tidy()
    assert again.take(v1(pictures[3])), "a user may send it again"


def test_what_a_kill_or_a_wrong_clock_has_left_is_not_kept_for_ever(tmp_path: Path) -> None:
    half, ahead, other = ".20261128T110000000000-0.png", "20280101T000000000000-0.png", ".20261128.png"
    for name in (half, ahead, other, "20261129T110000000000-0.png"):
        (tmp_path / name).write_bytes(PNG)
    collector: Any = Collector(PictureFolder(tmp_path), now=Clock())
    assert collector.tidy() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [other, "20261129T110000000000-0.png"]


def test_a_clock_that_is_set_right_stops_nothing() -> None:
    clock, place = Clock(NOON + timedelta(days=700)), Memory()
    collector = Collector(place, 10, timedelta(hours=10), now=clock)
    assert collector.take(v1(PNG))
    assert not collector.wants(event())
    clock.now = NOON
    assert collector.wants(event())
    assert collector.take(v1(JPEG))
    assert [name[:8] for name in place.content] == ["20261129"], "and what was named by the wrong one is gone"


@contextmanager
def door(collector: Collector) -> Iterator[tuple[str, int]]:
    """Its door, in this process."""
    with collecting.Door(("127.0.0.1", 0), collector) as one:
        Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        yield "127.0.0.1", one.server_address[1]
        one.shutdown()


def head(size: object) -> bytes:
    said = "".join(f"{name}: {value}\r\n" for name, value in event().items())
    return f"POST / HTTP/1.1\r\n{said}Content-Length: {size}\r\n\r\n".encode("latin-1")


def test_who_dribbles_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte came in time, and sixteen senders of such held every place for as long as they liked."""
    monkeypatch.setattr(collecting, "_SLOWEST", 0.3)
    place, over = Memory(), Event()

    def dribble(address: tuple[str, int]) -> None:
        while not over.is_set():
            with suppress(OSError), socket.create_connection(address) as sender:
                sender.sendall(head(LARGEST_BODY))
                while not over.wait(0.02):
                    sender.sendall(b"x")

    with door(Collector(place, now=Clock())) as address:
        senders = [Thread(target=dribble, args=(address,)) for _ in range(collecting._AT_ONCE + 2)]
        for sender in senders:
            sender.start()
        try:

            def kept() -> bool:
                with suppress(OSError), socket.create_connection(address, 5) as one:
                    one.sendall(head(len(v1(PNG))) + v1(PNG))
                    one.recv(1)
                return bool(place.content)

            until(kept, "nobody else is heard")
        finally:
            over.set()
            for sender in senders:
                sender.join()


@pytest.mark.parametrize("size", ["\xb2", "-1", "1e3", "99999999999999", ""])
def test_a_length_that_is_none_is_answered_as_any(size: str) -> None:
    place = Memory()
    with door(Collector(place, now=Clock())) as address, socket.create_connection(address) as sender:
        sender.sendall(head(size))
        sender.shutdown(socket.SHUT_WR)
        assert sender.recv(99).startswith(b"HTTP/1.0 200")
    assert not place.content


def test_half_a_picture_is_none() -> None:
    place = Memory()
    with door(Collector(place, now=Clock())) as address, socket.create_connection(address) as sender:
        sender.sendall(head(len(PNG) + 1) + PNG)
        sender.shutdown(socket.SHUT_WR)
        assert sender.recv(99).startswith(b"HTTP/1.0 200")
    assert not place.content


def test_only_requests_of_the_services_that_are_named() -> None:
    collector = Collector(Memory(), services=frozenset({"models/faces"}), now=Clock())
    assert collector.wants(event())
    assert not collector.wants(event(**{"Ce-Inferenceservicename": "digits"}))
    assert not collector.wants(event(**{"Ce-Type": "org.kubeflow.serving.inference.response"}))
    assert not collector.wants({})
    assert Collector(Memory(), now=Clock()).wants(event(**{"Ce-Namespace": "other"}))


@contextmanager
def running(place: str, *words: str) -> Iterator[str]:
    """The command as a process; its address."""
    command = [sys.executable, "-m", "model_release", "collect", place, "--listen", "127.0.0.1:0", *words]
    env = {**os.environ, "PYTHONPATH": str(PROJECT / "plugins")}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield f"http://{line.split()[2]}"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT) == 0


def test_what_an_agent_sends_is_there_for_a_shadow(tmp_path: Path) -> None:
    old = tmp_path / "20200101T000000000000-00000000.png"
    old.write_bytes(PNG)
    with running(str(tmp_path), "--most", "1000000", "--keep", "1s") as address, requests.Session() as http:
        http.trust_env = False
        assert not old.exists(), "what was kept longer than it may be is gone at once"
        assert http.post(address, data=b"x" * (LARGEST_BODY + 1), headers=event()).status_code == 200
        assert http.get(address).status_code == 501

        def kept() -> list[Path]:
            assert http.post(address, data=v1(PNG), headers=event()).status_code == 200
            return list(tmp_path.glob("*.png"))

        found = until(kept, "nothing is kept")
        assert {path.stat().st_mode & 0o077 for path in found} == {0}
    assert [read() for _, read in chosen(str(tmp_path), Path("/"), lambda: None, 1, "x")] == [PNG]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nowhere"], "is no folder"),
        ([".", "--keep", "long"], "--keep: 'long' is no duration"),
        ([".", "--keep", "0s"], "--keep: 0s keeps nothing"),
        ([".", "--listen", "192.0.2.1:8080"], "--listen 192.0.2.1:8080: "),
        ([".", "--listen", "8080"], "127.0.0.1:8080 and 500 are right"),
        ([".", "--most", "0"], "127.0.0.1:8080 and 500 are right"),
    ],
)
def test_bad_words_are_one_line(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", *words]) == 1
    assert why in capsys.readouterr().err


def test_it_listens_on_loopback_unless_told() -> None:
    from model_release.commands import _parser

    assert _parser().parse_args(["collect", "."]).listen == "127.0.0.1:8080"


def test_a_folder_keeps_what_it_was_given(tmp_path: Path) -> None:
    place: Any = PictureFolder(tmp_path)
    place.write_bytes("a.png", PNG, "x")
    assert place.names() == ["a.png"]
    place.remove(["a.png", "gone.png"])
    assert place.names() == []
