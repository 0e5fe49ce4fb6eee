"""Export → what KServe downloads: a TorchServe archive and its configuration, reproducible to the byte.

```
config/config.properties    TorchServe's settings (docs/facts.md#settings-of-the-archive)
config/metrics.yaml         the handler's metrics
model-store/<service>.mar   TorchScript, labels, handler: made by torch-model-archiver, stored, not deflated
smoke.json                  sample images and the answers expected of them
```
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile, copyfileobj
from tempfile import TemporaryDirectory
from typing import Any

from model_release.build import processes
from model_release.build.export import RESPONSE_TIMEOUT, handler_files
from model_release.errors import ArchiveError, SpecError
from model_release.store import files
from model_release.store.store import SMOKE

#: The version of the model inside TorchServe. Releases are told apart by revision, never by this.
MODEL_VERSION = "1.0"
#: Where KServe puts a version's files.
MOUNT = "/mnt/models"
CONFIG = "config/config.properties"
METRICS = "config/metrics.yaml"

# Zip knows no earlier time.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_CREATED_ON = "01/01/1980 00:00:00"
_MANIFEST = "MAR-INF/MANIFEST.json"


@dataclass(frozen=True)
class Archive:
    """A folder in KServe's layout. `sha256` and `size` (bytes) are those of the .mar."""

    directory: Path
    service: str
    sha256: str
    size: int

    @property
    def mar(self) -> Path:
        return self.directory / "model-store" / f"{self.service}.mar"


def archive(
    export_dir: Path,
    service: str,
    handler: Path,
    output: Path,
    *,
    response_timeout: int = RESPONSE_TIMEOUT,
    log: Callable[[str], None] | None = None,
) -> Archive:
    """Packs the export in `export_dir` for the InferenceService `service` into the folder `output`.

    The model inside is named like the service, in every version: its name is in the URL, and a canary of another
    name would answer 404. A request may take `response_timeout` seconds, then its worker is started anew. Run again,
    the folder is replaced by one of the same bytes. Raises `ArchiveError`, and `SpecError` for a name that KServe would
    refuse.
    """
    log = log or logging.getLogger(__name__).info
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", service):
        raise SpecError(
            f"{service!r} is no name for a service; right would be lower case, digits and '-', like my-model-2"
        )
    with TemporaryDirectory(prefix="mar-") as scratch, files.replaced(output) as fresh:
        packed = _pack(export_dir, service, handler, Path(scratch))
        for name in ("config", "model-store"):
            (fresh / name).mkdir()
        _write_zip(packed, fresh / "model-store" / f"{service}.mar")
        (fresh / CONFIG).write_text(_config_properties(service, response_timeout), encoding="utf-8")
        (fresh / METRICS).write_text(_metrics_yaml(), encoding="utf-8")
    packed_archive = load(output, service)
    log(f"{packed_archive.mar.name}: {packed_archive.size / 1e6:.1f} MB, sha256 {packed_archive.sha256[:16]}…")
    return packed_archive


def load(directory: Path, service: str) -> Archive:
    """The archive that an earlier task left in `directory`. Raises `ArchiveError` where there is none."""
    mar = directory / "model-store" / f"{service}.mar"
    if not mar.is_file() or not (directory / CONFIG).is_file():
        raise ArchiveError(f"{directory} holds no archive of {service}")
    return Archive(directory, service, files.sha256(mar), mar.stat().st_size)


def check(
    archive: Archive,
    export_dir: Path,
    *,
    log: Callable[[str], None] | None = None,
    timeout: float = 600,
) -> dict[str, Any]:
    """Opens the finished .mar as TorchServe does, in a process that has torch, Pillow and NumPy and nothing of
    Hugging Face's, and asks its handler for real images.

    It must give the original model's answers (`reference.json` of the export) through KServe's envelope, and
    blame bad input on the client. Returns the smoke test, `{"instances": [{"data": base64}], "expected":
    [{"label", "score"}]}`, and leaves it in the archive's `smoke.json`. Run again, it does so again.

    Raises `ArchiveError` with the handler's own words.
    """
    log = log or logging.getLogger(__name__).info
    with TemporaryDirectory(prefix="bare-") as scratch:
        report = processes.run(
            # -I: neither this package nor anything the worker has on its path.
            [
                "-I",
                str(Path(__file__).with_name("bare_check.py")),
                str(archive.mar),
                str(export_dir / "reference.json"),
            ],
            what=f"the check of {archive.mar.name}",
            log=log,
            env=processes.environment(TS_SERVICE_ENVELOPE="kserve", TMPDIR=scratch, HOME=scratch),
            timeout=timeout,
            cwd=Path(scratch),
        )
    smoke = json.loads((export_dir / "reference.json").read_text(encoding="utf-8"))
    (archive.directory / SMOKE).write_text(
        json.dumps(smoke, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    log(
        f"{archive.mar.name} answers {len(smoke['expected'])} images as the original does "
        f"(scores within {report['largest_difference']:.1g}), loaded in {report['load_seconds']:.1f} s"
    )
    return dict(smoke)


def _pack(export_dir: Path, service: str, handler: Path, scratch: Path) -> Path:
    """Lets torch-model-archiver build the archive's folder. It splits on commas, globs, and uses (and empties)
    $TMPDIR/<model name>: so it gets plain names in a folder of its own."""
    stage, temporary, target = scratch / "stage", scratch / "tmp", scratch / "out"
    for folder in (stage, temporary, target):
        folder.mkdir()
    modules = handler_files(handler)
    for module in modules:
        copyfile(module, stage / module.name)
    for name in ("model.pt", "model.json"):
        if not (export_dir / name).is_file():
            raise ArchiveError(f"{export_dir} lacks {name}: it is no finished export")
    copyfile(export_dir / "model.json", stage / "model.json")
    (stage / "model.pt").symlink_to((export_dir / "model.pt").resolve())
    arguments = ["--model-name", service, "--version", MODEL_VERSION, "--serialized-file", "model.pt"]
    arguments += ["--handler", handler.name, "--extra-files", ",".join(["model.json", *(m.name for m in modules[1:])])]
    arguments += ["--archive-format", "no-archive", "--export-path", str(target)]
    program = "import json; from model_archiver.model_packaging import generate_model_archive as pack; pack(); "
    processes.run(
        ["-c", program + "print(json.dumps({'report': {}}))", *arguments],
        what="torch-model-archiver",
        log=logging.getLogger(__name__).info,
        env=processes.environment(TMPDIR=str(temporary)),
        timeout=600,
        cwd=stage,
    )
    packed = target / service
    manifest = json.loads((packed / _MANIFEST).read_text(encoding="utf-8"))
    manifest["createdOn"] = _CREATED_ON
    (packed / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return packed


def _write_zip(folder: Path, target: Path) -> None:
    """A zip whose bytes depend on names and content alone. Stored: weights do not shrink, and TorchServe unpacks
    a stored archive in a fraction of the time."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _ZIP_EPOCH)
            entry.external_attr, entry.file_size = 0o644 << 16, path.stat().st_size
            with path.open("rb") as source, archive.open(entry, "w") as sink:
                copyfileobj(source, sink, 1 << 20)


def _config_properties(service: str, response_timeout: int) -> str:
    model = {
        "defaultVersion": True,
        "marName": f"{service}.mar",
        "minWorkers": 1,
        "maxWorkers": 1,
        # Anything but 1 answers 503 (docs/facts.md#one-request-a-batch).
        "batchSize": 1,
        "maxBatchDelay": 10,
        "responseTimeout": response_timeout,
        # Seconds. How long loading may take is rollout.ready_within's to say; TorchServe's own 120 would end it before.
        "startupTimeout": 3600,
    }
    snapshot = {"name": "startup.cfg", "modelCount": 1, "models": {service: {MODEL_VERSION: model}}}
    settings = {
        # KServe's wrapper sits in the same container and calls these; nobody else may (management can load code).
        "inference_address": "http://127.0.0.1:8085",
        "management_address": "http://127.0.0.1:8085",
        # Scraped from outside of the pod.
        "metrics_address": "http://0.0.0.0:8082",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": 7070,
        "grpc_management_port": 7071,
        "enable_envvars_config": "true",
        "install_py_dep_per_model": "false",
        "enable_metrics_api": "true",
        "metrics_mode": "prometheus",
        "metrics_config": f"{MOUNT}/{METRICS}",
        # The wrapper cannot send tokens.
        "disable_token_authorization": "true",
        "number_of_netty_threads": 4,
        "job_queue_size": 100,
        # Photographs in base64; the default is 6.5 MB.
        "max_request_size": 33554432,
        "max_response_size": 33554432,
        "model_store": f"{MOUNT}/model-store",
        "model_snapshot": json.dumps(snapshot, separators=(",", ":")),
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _metrics_yaml() -> str:
    """TorchServe's own metrics and the handler's two.

    TorchServe fills dimensions by position and appends ModelName and Level: own ones come first, or labels would
    silently swap their values. JSON is YAML.
    """
    host, request = ["Level", "Hostname"], ["model_name", "model_version", "hostname"]
    worker = ["WorkerName", "Level", "Hostname"]
    gauges = {
        "QueueTime": "Milliseconds",
        "WorkerThreadTime": "Milliseconds",
        "CPUUtilization": "Percent",
        "MemoryUsed": "Megabytes",
        "MemoryAvailable": "Megabytes",
        "MemoryUtilization": "Percent",
        "DiskUsage": "Gigabytes",
        "DiskUtilization": "Percent",
        "DiskAvailable": "Gigabytes",
    }

    def metric(name: str, unit: str, dimensions: list[str]) -> dict[str, Any]:
        return {"name": name, "unit": unit, "dimensions": dimensions}

    model = ["ModelName", "Level"]
    content = {
        "dimensions": ["ModelName", "WorkerName", "Level", "DeviceId", "Hostname"],
        "ts_metrics": {
            "counter": [
                *(metric(name, "Count", host) for name in ("Requests2XX", "Requests4XX", "Requests5XX")),
                metric("ts_inference_requests_total", "Count", request),
                metric("ts_inference_latency_microseconds", "Microseconds", request),
                metric("ts_queue_latency_microseconds", "Microseconds", request),
            ],
            "gauge": [
                *(metric(name, unit, host) for name, unit in gauges.items()),
                metric("WorkerLoadTime", "Milliseconds", worker),
            ],
        },
        "model_metrics": {
            "gauge": [metric("PredictionTime", "ms", model)],
            "histogram": [metric("image_classifier_request_seconds", "s", model)],
            "counter": [metric("image_classifier_predictions_total", "Count", ["label", *model])],
        },
    }
    return json.dumps(content, indent=1) + "\n"
