"""A SeaweedFS and an API server for the tests of the history, and releases and versions to put into them."""

from __future__ import annotations

import importlib.util
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from model_release.judging.record import Record
from model_release.store.store import Store

VERSION = "0123456789abcdef"


def of_room(room: str) -> Any:
    """The fixtures of another room's tests; pytest shares them only with folders below."""
    path = Path(__file__).resolve().parents[1] / room / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"history_{room}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"history_{room}"] = module
    spec.loader.exec_module(module)
    return module


s3 = of_room("build").s3
_cluster = of_room("cluster")
live = _cluster.live


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Any]:
    """Another cluster."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with _cluster.running(folder) as one:
        yield one


@pytest.fixture
def store(s3: Any) -> Store:
    """An empty one."""
    return Store(s3.client, f"s3://models/{uuid.uuid4().hex}/")


@pytest.fixture
def release() -> Callable[..., Record]:
    """A decision record: `release(3, outcome="promoted", model="faces")`."""
    return record_of


def record_of(number: int, **changes: Any) -> Record:
    started = changes.pop("started", f"2026-{1 + number % 9:02}-{1 + number % 28:02}T12:00:{number % 60:02}.000+00:00")
    outcome = changes.pop("outcome", "promoted")
    record = Record.new(
        changes.pop("name", f"digits-{number:05}"),
        model=changes.pop("model", "digits"),
        service=changes.pop("service", "models/digits"),
        version=changes.pop("version", VERSION),
        started=started,
        baseline=changes.pop("baseline", None),
        canary=changes.pop("canary", None),
        run={"dag_id": "release_digits", "run_id": f"run-{number}", "url": "http://airflow/x", "note": None},
    )
    record.cluster = changes.pop("cluster", None)
    record.record_traffic(started, "open_30", 30, {"digits-predictor-00002": 30, "digits-predictor-00001": 70})
    if outcome:
        record.finish(outcome, f"release {number} ended", started)
    assert not changes
    return record


@pytest.fixture
def put(store: Store) -> Callable[[Record], Record]:
    """Writes a record as a task does, over the one before it."""

    def write(record: Record) -> Record:
        key = f"releases/{record.release}.json"
        store.write_json(key, record.to_dict(), if_match=store.tag(key))
        return record

    return write


@pytest.fixture
def publish(store: Store, tmp_path: Path) -> Callable[..., str]:
    """Publishes a version made so many days ago and returns its name: `publish(200, model="faces")`."""

    def make(days: float, **metadata: Any) -> str:
        folder = tmp_path / uuid.uuid4().hex
        for name, content in {
            "config/config.properties": b"metrics_mode=prometheus\n",
            "model-store/digits.mar": f"weights {days} {metadata}".encode(),
            "smoke.json": b'{"instances": [], "expected": []}',
        }.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        time = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        source = {"origin": "candidates/digits", "candidate": f"days-{days}", "commit": None}
        about = {"model": "digits", "service": "digits", "source": source, "time": time}
        return store.publish(folder, {**about, **metadata}).name

    return make


@pytest.fixture
def keys(tmp_path: Path) -> Callable[[str], None]:
    """Makes a pair of key files: `keys("a")` → a.pem, a.pub."""

    def make(name: str) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
        plain = serialization.NoEncryption()
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pem").write_bytes(private)
        (tmp_path / f"{name}.pub").write_bytes(public)

    return make
