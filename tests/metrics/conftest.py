"""Histories written into a real Prometheus: exact samples at exact moments, by `promtool tsdb create-blocks-from`."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from model_release.metrics import Prometheus
from model_release.spec import Judge
from sandbox import programs

NAMESPACE, CANARY, STABLE = "models", "digits-predictor-00002", "digits-predictor-00001"
OPENING = datetime(2026, 1, 5, 10, 0, tzinfo=UTC)


class History:
    """What Prometheus scraped. Moments are seconds after the opening, negative ones before it."""

    def __init__(self) -> None:
        self._series: dict[str, dict[tuple[tuple[str, str], ...], list[tuple[float, float]]]] = defaultdict(dict)

    def add(self, name: str, labels: Mapping[str, str], samples: Mapping[float, float]) -> None:
        line = self._series[name].setdefault(tuple(sorted(labels.items())), [])
        line += [(OPENING.timestamp() + moment, value) for moment, value in sorted(samples.items())]

    def openmetrics(self) -> str:
        lines = []
        for name, family in self._series.items():
            for labels, samples in family.items():
                pairs = ",".join(f'{key}="{value}"' for key, value in labels)
                lines += [f"{name}{{{pairs}}} {value!r} {moment:.3f}" for moment, value in samples]
        return "\n".join([*lines, "# EOF", ""])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A Prometheus process."""

    def __init__(self, folder: Path, configuration: str = "scrape_configs: []\n") -> None:
        self.folder, self.port = folder, free_port()
        (folder / "prometheus.yml").write_text(configuration)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            str(programs.prometheus()),
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=error",
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"}, cwd=self.folder
            )
        for _ in range(500):
            try:
                if requests.get(f"{self.url}/-/ready", timeout=1).ok:
                    return
            except requests.ConnectionError:
                pass
            assert self._process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)
        raise AssertionError("Prometheus does not become ready")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[History], Prometheus]]:
    """Gives a client of a Prometheus that holds the history."""
    opened: list[Any] = []

    def start(history: History) -> Prometheus:
        folder = tmp_path / f"prometheus-{len(opened)}"
        (folder / "data").mkdir(parents=True)
        text = folder / "history.txt"
        text.write_text(history.openmetrics())
        if text.stat().st_size > len("# EOF\n"):
            promtool = programs.prometheus().with_name("promtool")
            command = [
                str(promtool),
                "tsdb",
                "create-blocks-from",
                "openmetrics",
                "-q",
                str(text),
                str(folder / "data"),
            ]
            subprocess.run(command, check=True, capture_output=True)
        server = Server(folder)
        server.start()
        client = Prometheus(server.url)
        opened.extend([client.close, server.stop])
        return client

    yield start
    for close in opened:
        close()


@pytest.fixture
def judge_of() -> Callable[..., Judge]:
    def build(profile: str, *, above: str = "500ms", codes: str | None = None) -> Judge:
        errors = {"name": "errors", "max_rate": 0.02} | ({"codes": codes} if codes else {})
        slow = {"name": "slow", "above": above, "max_rate": 0.05}
        return Judge.model_validate({"profile": profile, "metrics": [errors, slow]})

    return build


def at(seconds: float) -> datetime:
    return OPENING + timedelta(seconds=seconds)
