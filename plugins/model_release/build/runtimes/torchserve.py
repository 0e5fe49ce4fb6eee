"""TorchServe: the files that KServe's runtime for it loads, how they are made, to the byte, and how they are opened
where there is no TorchServe.

```
config/config.properties    its settings (docs/facts.md#settings-of-the-archive)
config/metrics.yaml         its metrics and the handler's
model-store/<service>.mar   TorchScript, labels, handler: made by torch-model-archiver, stored, not deflated
```
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from types import ModuleType
from typing import Any

NAME = "torchserve"
#: What can be served of a model, best first.
ARTIFACTS = ("torchscript",)
#: The handler's file; `image_*.py` beside it go with it.
ENTRY = "image_classifier.py"
SUFFIX = ".mar"
#: Beside the packages of the export, what shapes an archive's bytes.
PACKAGES = ("torch-model-archiver",)
#: Its ServingRuntime, and images that answer a client's fault (400) with 500 (kserve/kserve#4247).
MANIFEST = "include/manifests/serving_runtime_own.yaml"
HIDE_STATUS = ("torchserve-kfs",)
#: What makes another archive for another `service.timeout`.
SETTINGS = ("response_timeout",)

#: The version of the model inside TorchServe. Releases are told apart by revision, never by this.
MODEL_VERSION = "1.0"
#: Where KServe puts a version's files.
MOUNT = "/mnt/models"
CONFIG = "config/config.properties"
METRICS = "config/metrics.yaml"
#: What KServe's runtime sets for protocol v1 (docs/facts.md#the-torchserve-runtime).
ENVIRONMENT = {"TS_SERVICE_ENVELOPE": "kserve"}

_STORE = "model-store"
_CREATED_ON = "01/01/1980 00:00:00"
_MANIFEST = "MAR-INF/MANIFEST.json"
_NETWORK = "model.pt"


def is_whole(directory: Path, service: str) -> bool:
    """Whether `write` has ended in this folder."""
    return (directory / _STORE / f"{service}{SUFFIX}").is_file() and (directory / CONFIG).is_file()


def write(
    directory: Path,
    export_dir: Path,
    service: str,
    handler: Path,
    scratch: Path,
    *,
    response_timeout: int,
    batching: Mapping[str, int] | None = None,
) -> None:
    """Puts what TorchServe loads of the export in `export_dir` into the empty folder `directory`."""
    from model_release.build.runtimes import stored_zip

    packed = _pack(export_dir, service, handler, scratch)
    target = directory / _STORE / f"{service}{SUFFIX}"
    for name in ("config", _STORE):
        (directory / name).mkdir()
    content = {path.relative_to(packed).as_posix(): path for path in packed.rglob("*") if path.is_file()}
    stored_zip({**content, _NETWORK: export_dir / _NETWORK}, target)
    (directory / CONFIG).write_text(_config_properties(service, response_timeout, batching), encoding="utf-8")
    (directory / METRICS).write_text(metrics_yaml(), encoding="utf-8")


def _pack(export_dir: Path, service: str, handler: Path, scratch: Path) -> Path:
    """Lets torch-model-archiver build the archive's folder. It splits on commas, globs, and uses (and empties)
    $TMPDIR/<model name>: so it gets plain names in a folder of its own."""
    from model_release.build import processes
    from model_release.build.runtimes import handler_files
    from model_release.errors import ArchiveError

    stage, temporary, target = scratch / "stage", scratch / "tmp", scratch / "out"
    for folder in (stage, temporary, target):
        folder.mkdir()
    modules = handler_files(handler)
    for module in modules:
        copyfile(module, stage / module.name)
    for name in (_NETWORK, "model.json"):
        if not (export_dir / name).is_file():
            raise ArchiveError(f"{export_dir} lacks {name}: it is no finished export")
    copyfile(export_dir / "model.json", stage / "model.json")
    # In the network's place: the archiver only copies it, and a large one is copied once, into the archive.
    (stage / _NETWORK).touch()
    arguments = ["--model-name", service, "--version", MODEL_VERSION, "--serialized-file", _NETWORK]
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


def _config_properties(service: str, response_timeout: int, batching: Mapping[str, int] | None) -> str:
    model = {
        "defaultVersion": True,
        "marName": f"{service}.mar",
        "minWorkers": 1,
        "maxWorkers": 1,
        # The handler takes the envelope's place, which reads one request a batch (docs/facts.md#one-request-a-batch).
        # Unless more are asked for, one that waits goes along, and none is waited for (docs/facts.md#no-delay): the
        # handler deals their pictures out to the CPUs.
        "batchSize": batching["max"] if batching else 2,
        "maxBatchDelay": batching["within_ms"] if batching else 0,
        # Counted from when a batch goes to the worker: one that takes longer is taken for dead. `batching` promises
        # that no whole batch does; of the two that go together without, each may take as long as one alone.
        "responseTimeout": response_timeout if batching else 2 * response_timeout,
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


def metrics_yaml() -> str:
    """TorchServe's own metrics and the handler's.

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
                metric("image_classifier_certainty_total", "Count", ["below", *model]),
                metric("image_classifier_slices_total", "Count", ["slice", "value", "below", *model]),
            ],
        },
    }
    return json.dumps(content, indent=1) + "\n"


# Where there is no TorchServe: nothing of this project is imported below.


class Metrics:
    """Keeps the names of what the handler emits."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add_metric(self, name: str, *_: Any, **__: Any) -> None:
        self.names.append(name)


class Context:
    """TorchServe's `ts.context.Context`, as far as envelope and handler use it."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.system_properties = {"model_dir": str(folder), "gpu_id": None, "batch_size": 1}
        self.manifest, self.metrics = manifest, Metrics()
        self.refused: set[int] = set()
        self.failed = False

    def get_request_header(self, *_: Any) -> None:
        return None

    def get_all_request_header(self, *_: Any) -> dict[str, str]:
        return {}

    def set_response_content_type(self, row: int, kind: str) -> None:
        """Nobody reads it here."""

    def set_response_status(self, code: int = 200, phrase: str = "", row: int = 0) -> None:
        if code >= 400:
            self.refused.add(row)
        self.failed |= code >= 500


def _stand_in() -> None:
    """Provides the four names of `ts` that a handler imports and the KServe envelope, where `ts` is missing."""
    if importlib.util.find_spec("ts") is not None:
        return

    class PredictionException(Exception):
        def __init__(self, message: str, error_code: int = 500) -> None:
            super().__init__(message)
            self.message, self.error_code = message, error_code

    class Dimension:
        def __init__(self, name: str, value: str) -> None:
            self.name, self.value = name, value

    class MetricTypes:
        COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    class KServeEnvelope:
        def __init__(self, handle: Any) -> None:
            self._handle = handle

        def parse_input(self, data: Any) -> Any:
            body = data[0].get("data") or data[0].get("body")
            body = json.loads(body) if isinstance(body, (bytes, bytearray)) else body
            return body.get("instances")

        def format_output(self, data: Any) -> Any:
            return [{"predictions": data}]

        def handle(self, data: Any, context: Any) -> Any:
            return self.format_output(self._handle(self.parse_input(data), context))

    homes: dict[str, dict[str, Any]] = {
        "ts.utils.util": {"PredictionException": PredictionException},
        "ts.metrics.dimension": {"Dimension": Dimension},
        "ts.metrics.metric_type_enum": {"MetricTypes": MetricTypes},
        "ts.torch_handler.request_envelope.kserve": {"KServeEnvelope": KServeEnvelope},
    }
    for home, names in homes.items():
        parts = home.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            sys.modules.setdefault(name, ModuleType(name))
        vars(sys.modules[home]).update(names)


class Loaded:
    """An archive's own handler, loaded as TorchServe loads it. `holder.model` is the network, where it has one."""

    def __init__(self, folder: Path, _name: str) -> None:
        _stand_in()
        self._folder = folder
        self._manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sys.path.insert(0, str(folder))
        file = self._manifest["model"]["handler"]
        module = importlib.import_module(file.removesuffix(".py"))
        classes = [
            item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__
        ]
        if len(classes) != 1:
            raise ValueError(f"{file} must define one class, TorchServe's entry; it defines {len(classes)}")
        self.holder: Any = classes[0]()
        self.holder.initialize(self._context())

    def predict(self, instances: list[Any]) -> list[Any]:
        """The answers to a request in V1, through KServe's envelope. Raises what the handler raises."""
        envelope = importlib.import_module("ts.torch_handler.request_envelope.kserve").KServeEnvelope
        asked = [{"body": {"instances": instances}}]
        return list(envelope(self.holder.handle).handle(asked, self._context())[0]["predictions"])

    @staticmethod
    def is_clients(error: Exception) -> bool:
        """Whether it is answered with 400."""
        return getattr(error, "error_code", None) == 400

    def answers(self, pictures: list[bytes]) -> list[Any]:
        """For each picture its labels, best first, or, as text, why it is refused; without the envelope, as TorchServe
        asks for a batch. Raises where the model failed for one of them."""
        context = self._context()
        rows = self.holder.handle([{"body": picture} for picture in pictures], context)
        if context.failed:
            raise RuntimeError("the model failed for a picture of these")
        return [
            str(row.get("error", row) if isinstance(row, dict) else row)
            if number in context.refused or not isinstance(row, list)
            else row
            for number, row in enumerate(rows)
        ]

    def _context(self) -> Context:
        return Context(self._folder, self._manifest)
