"""Histories written into a real Prometheus: exact samples at exact moments, by `promtool tsdb create-blocks-from`.

And a StatsD that listens, with Airflow's two copies of its metrics turned on towards it.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from tests.patience import LIMIT, until

from model_release.metrics import Prometheus
from model_release.spec import JudgeSpec
from sandbox import programs
from sandbox.ports import free_port

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
        until(self._answers, "Prometheus does not become ready")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            return requests.get(f"{self.url}/-/ready", timeout=LIMIT).ok
        except requests.ConnectionError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


@contextmanager
def serving(folder: Path) -> Iterator[Callable[[History], Prometheus]]:
    """Gives clients of a Prometheus that holds the history, one for each; stops them all."""
    with ExitStack() as opened:

        def start(history: History) -> Prometheus:
            own = folder / f"prometheus-{len(list(folder.iterdir()))}"
            (own / "data").mkdir(parents=True)
            text = own / "history.txt"
            text.write_text(history.openmetrics())
            if text.stat().st_size > len("# EOF\n"):
                promtool = programs.prometheus().with_name("promtool")
                words = ["tsdb", "create-blocks-from", "openmetrics", "-q", str(text), str(own / "data")]
                subprocess.run([str(promtool), *words], check=True, capture_output=True)
            server = Server(own)
            server.start()
            opened.callback(server.stop)
            return opened.enter_context(Prometheus(server.url))

        yield start


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[History], Prometheus]]:
    """Gives a client of a Prometheus that holds the history."""
    with serving(tmp_path) as start:
        yield start


@pytest.fixture
def judge_of() -> Callable[..., JudgeSpec]:
    def build(profile: str, *, above: str = "500ms", codes: str | None = None) -> JudgeSpec:
        errors = {"name": "errors", "max_rate": 0.02} | ({"codes": codes} if codes else {})
        slow = {"name": "slow", "above": above, "max_rate": 0.05}
        return JudgeSpec.model_validate({"profile": profile, "metrics": [errors, slow]})

    return build


def at(seconds: float) -> datetime:
    return OPENING + timedelta(seconds=seconds)


class Statsd:
    """A UDP socket, as StatsD's is."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.port: int = self._socket.getsockname()[1]

    def lines(self) -> list[str]:
        """Every line that has come since the last time."""
        found: list[str] = []
        while True:
            try:
                found += self._socket.recv(65_536).decode().splitlines()
            except TimeoutError:
                return found

    def close(self) -> None:
        self._socket.close()


@contextmanager
def listening() -> Iterator[Statsd]:
    """As `[metrics]` of airflow.cfg is to be set (docs/metrics.md), in the triggerer and in tasks."""
    from airflow.observability import stats as core
    from airflow.observability.metrics import stats_utils as core_utils
    from airflow.sdk.observability import stats as sdk
    from airflow.sdk.observability.metrics import stats_utils as sdk_utils

    server = Statsd()
    settings = {"STATSD_ON": "True", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": str(server.port)}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (settings | {"STATSD_INFLUXDB_ENABLED": "True"}).items():
            patch.setenv(f"AIRFLOW__METRICS__{key}", value)
        core.initialize(factory=core_utils.get_stats_factory(), export_legacy_names=True)
        sdk.initialize(factory=sdk_utils.get_stats_factory(), export_legacy_names=True)
        yield server
    server.close()
    off()


@pytest.fixture
def statsd() -> Iterator[Statsd]:
    with listening() as server:
        yield server


def off() -> None:
    """Airflow's metrics as they are unless somebody turns them on."""
    from airflow.observability import stats as core
    from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
    from airflow.sdk.observability import stats as sdk

    nothing: Callable[[], NoStatsLogger] = NoStatsLogger
    core.initialize(factory=nothing, export_legacy_names=True)
    sdk.initialize(factory=nothing, export_legacy_names=True)
