"""What is known of TorchServe: the files that KServe's runtime for it loads, and how they are made, to the byte.

```
config/config.properties    its settings (docs/facts.md#settings-of-the-archive)
config/metrics.yaml         its metrics and the handler's
model-store/<service>.mar   TorchScript, labels, handler: made by torch-model-archiver, stored, not deflated
```

Another serving runtime is another module with these functions. The two programs that stand in for TorchServe where an
archive is asked without it are `build.bare_check` and `build.evaluation.ask`.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path
from shutil import copyfile, copyfileobj
from typing import Any

from model_release.build import processes
from model_release.build.export import handler_files
from model_release.errors import ArchiveError

#: The version of the model inside TorchServe. Releases are told apart by revision, never by this.
MODEL_VERSION = "1.0"
#: Where KServe puts a version's files.
MOUNT = "/mnt/models"
CONFIG = "config/config.properties"
METRICS = "config/metrics.yaml"
#: What KServe's runtime sets for protocol v1 (docs/facts.md#the-torchserve-runtime).
ENVIRONMENT = {"TS_SERVICE_ENVELOPE": "kserve"}

_STORE = "model-store"
# Zip knows no earlier time.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_CREATED_ON = "01/01/1980 00:00:00"
_MANIFEST = "MAR-INF/MANIFEST.json"


def model_file(service: str) -> str:
    """Where the model of the service lies in a version."""
    return f"{_STORE}/{service}.mar"


def model_files(paths: Iterable[str]) -> list[str]:
    """The models among a version's files."""
    return [path for path in paths if path.startswith(f"{_STORE}/") and path.endswith(".mar")]


def is_whole(directory: Path, service: str) -> bool:
    """Whether `write` has ended in this folder."""
    return (directory / model_file(service)).is_file() and (directory / CONFIG).is_file()


def write(
    directory: Path, export_dir: Path, service: str, handler: Path, scratch: Path, *, response_timeout: int
) -> None:
    """Puts what TorchServe loads of the export in `export_dir` into the empty folder `directory`."""
    packed = _pack(export_dir, service, handler, scratch)
    for name in ("config", _STORE):
        (directory / name).mkdir()
    _write_zip(packed, directory / model_file(service))
    (directory / CONFIG).write_text(_config_properties(service, response_timeout), encoding="utf-8")
    (directory / METRICS).write_text(_metrics_yaml(), encoding="utf-8")


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
        "model_store": f"{MOUNT}/{_STORE}",
        "model_snapshot": json.dumps(snapshot, separators=(",", ":")),
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _metrics_yaml() -> str:
    """TorchServe's own metrics and the handler's three.

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
            "counter": [
                metric("image_classifier_predictions_total", "Count", ["label", *model]),
                metric("image_classifier_confidence_total", "Count", ["below", *model]),
            ],
        },
    }
    return json.dumps(content, indent=1) + "\n"
