"""Real programs in temporary state folders, and a tiny archive for TorchServe to serve."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox import process
from sandbox.envoy import Envoy
from sandbox.ports import Ports
from sandbox.s3 import ModelStore

HANDLER = """
class Handler:
    def initialize(self, context):
        {initialize}

    def handle(self, data, context):
        return [{{"got": row["data"]}} for row in data]
"""

CONFIG = """\
inference_address=http://0.0.0.0:8085
management_address=http://0.0.0.0:8085
metrics_address=http://0.0.0.0:8082
enable_metrics_api=true
metrics_mode=prometheus
disable_token_authorization=true
enable_envvars_config=true
install_py_dep_per_model=false
number_of_netty_threads=2
job_queue_size=100
model_store=/mnt/models/model-store
model_snapshot={"name":"startup.cfg","modelCount":1,"models":{"digits":{"1.0":{"defaultVersion":true,\\
"marName":"digits.mar","minWorkers":1,"maxWorkers":1,"batchSize":1,"maxBatchDelay":100,"responseTimeout":120}}}}
"""

Publish = Callable[..., str]


@pytest.fixture
def state(tmp_path: Path) -> Any:
    folder = tmp_path / "state"
    folder.mkdir()
    yield folder
    left = process.processes(folder)
    process.end(left)
    shutil.rmtree(process.short_folder(folder))
    assert not left, f"left behind: {left}"


@pytest.fixture
async def envoy(state: Path) -> AsyncIterator[Envoy]:
    front_door = Envoy(state, Ports(state / "ports.json"))
    await front_door.start()
    yield front_door
    await front_door.stop()


@pytest.fixture
async def store(state: Path) -> AsyncIterator[ModelStore]:
    s3 = ModelStore(state, Ports(state / "ports.json"))
    await s3.start()
    await s3.ensure_bucket("models")
    yield s3
    await s3.stop()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Makes a .mar whose handler answers what it was sent, and whose `initialize` is the given statement."""

    def make(initialize: str) -> bytes:
        folder = tmp_path_factory.mktemp("archive")
        (folder / "handler.py").write_text(HANDLER.format(initialize=initialize))
        archiver = Path(sys.executable).with_name("torch-model-archiver")
        subprocess.run(
            [archiver, "--model-name", "digits", "--version", "1.0", "--handler", "handler.py", "--export-path", "."],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        return (folder / "digits.mar").read_bytes()

    return make


@pytest.fixture(scope="session")
def publish(archive: Callable[[str], bytes]) -> Publish:
    """Puts a version into the store and returns its storage URI."""

    def put(client: Any, version: str, initialize: str = "pass", config: str = CONFIG, mar: bool = True) -> str:
        prefix = f"digits/{version}"
        client.put_object(Bucket="models", Key=f"{prefix}/config/config.properties", Body=config.encode())
        if mar:
            body = archive(initialize)
            client.put_object(Bucket="models", Key=f"{prefix}/model-store/digits.mar", Body=body)
        return f"s3://models/{prefix}/"

    return put
