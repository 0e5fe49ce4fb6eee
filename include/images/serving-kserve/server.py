"""KServe's own Python model server with this project's model class: what the container of `runtime: kserve` runs.

    python server.py [--model_dir /mnt/models] [--http_port 8080] [--metrics_port 8082] [--host 127.0.0.1]

It reads `config/serving.json` of the version, unpacks its archive, and lets `kserve` serve the model class in it.
Beside KServe's own routes (docs/facts.md#kserves-model-server):

- `POST /v1/models/NAME:predict` and `POST /v2/models/NAME/infer` take what the TorchServe path takes
  (docs/requests.md): KServe's own readers drop fields that they do not know, and gzip is an error to them;
- 400 is the client's fault; whatever else goes wrong, above all the network on a perfectly good picture, is 503;
- what KServe would answer with 5xx for whoever asks, or lets anybody do to the model (explain, versions of a model,
  loading and unloading), is 404;
- metrics are also at a port of their own, the one that a PodMonitor finds for each runtime.

A version of another runtime, or one that was built by a newer torch, ends it with one line and code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import re
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import prometheus_client
import torch
from fastapi import Request
from fastapi.responses import JSONResponse
from kserve import ModelServer, model_server
from kserve.errors import InvalidInput
from kserve.protocol.rest.server import RESTServer

_log = logging.getLogger("server")

LARGEST_REQUEST = 33_554_432
#: Requests that were read and are under way, or wait: as many as TorchServe's queue has. More are answered 503.
MOST_REQUESTS = 100
_GRACE = 20
#: Seconds, more than the hour of Envoy and the 90 s of queue-proxy: a connection that a proxy is about to use again is
#: never closed here, which would be a 503 for that request.
_KEEP_ALIVE = 3_700
# What a version may say beside its network: one that was built before says nothing, and its model class knows none.
_SETTINGS = {"batching": ("max", "within_ms")}
_PREDICT = ("/v1/models/{model_name}:predict", "/v2/models/{model_name}/infer")
_NOT_SERVED = (
    "/v1/models/{model_name}:explain",
    "/v2/models/{model_name}/versions/{rest:path}",
    "/v2/repository/{rest:path}",
)


def read_config(folder: Path) -> tuple[str, Path, dict[str, Any]]:
    """(the service, its archive, what the model class is told) of the version in `folder`. Raises SystemExit, one
    line."""
    file = folder / "config" / "serving.json"
    if (folder / "config" / "config.properties").exists() and not file.exists():
        raise SystemExit(
            f"server: {folder} holds a version for runtime torchserve, and this is the server of runtime kserve; the "
            "model file's runtime and service.runtime must name the same"
        )
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        service, built = str(said["service"]), str(said["torch"])
        settings = {
            name: {key: int(said[name][key]) for key in keys} for name, keys in _SETTINGS.items() if name in said
        }
    except OSError as error:
        raise SystemExit(f"server: {file}: {error.strerror}; the storage initializer puts it there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"server: {file} names no service and torch: {error!r}") from None
    if _release(torch.__version__) < _release(built):
        raise SystemExit(
            f"server: the version was built by torch {built}, and this image has {torch.__version__}; an image with "
            f"torch {built} or newer can open it"
        )
    return service, folder / "model-store" / f"{service}.zip", settings


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))


def load(service: str, archive: Path, folder: Path, settings: dict[str, Any]) -> Any:
    """The version's own model class, loaded; unpacked into `folder`. Raises SystemExit, one line."""
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        sys.path.insert(0, str(folder))
        model = importlib.import_module("kserve_model").ImageClassifier(service, folder, **settings)
        model.load()
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise SystemExit(f"server: {archive.name} does not load: {type(error).__name__}: {lines[-1]}") from error
    return model


class Front:
    """How a request becomes one of the model's, and what is answered."""

    def __init__(self, server: Any) -> None:
        self._server, self._under_way = server, 0

    async def predict(self, model_name: str, request: Request) -> Any:
        """Answers V1 and V2 alike: which it is stands in the body."""
        if self._server.dataplane.model_registry.get_model(model_name) is None:
            return _error(404, f"Model with name {model_name} does not exist.")
        if request.url.query:
            return _error(400, f"the query ({request.url.query[:80]}) is not read; top_k belongs into parameters")
        fields = await _fields(request)
        if fields is None:
            return _error(413, f"the request is over the limit of {LARGEST_REQUEST >> 20} MiB")
        if self._under_way >= MOST_REQUESTS:
            _log.warning("%d requests are under way: one more is answered 503", MOST_REQUESTS)
            return _error(503, f"{MOST_REQUESTS} requests are under way")
        self._under_way += 1
        try:
            answer, _ = await self._server.dataplane.infer(model_name, fields, dict(request.headers))
        except InvalidInput as error:
            return _error(400, str(error))
        except Exception as error:
            # The model has said what failed where it was the network.
            _log.error("%s: %s", type(error).__name__, (str(error).splitlines() or [""])[-1])
            return _error(503, "Prediction failed")
        finally:
            self._under_way -= 1
        return JSONResponse(answer)


async def _fields(request: Request) -> dict[str, Any] | None:
    """The body, or the fields of a form; None where there is too much of it."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_REQUEST:
            return None
    kind = request.headers.get("content-type", "")
    if not kind.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        return {"body": bytes(body)}
    request._body = bytes(body)  # read already; the reader of forms takes it from here
    async with request.form(max_part_size=LARGEST_REQUEST) as form:
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            # One of two would be dropped in silence: the model refuses a field that it does not know.
            own = f"{name} again" if name in fields else name
            fields[own] = value if isinstance(value, str) else await value.read()
        return fields


async def _not_served() -> JSONResponse:
    return _error(404, "not served here: predict (V1) and infer (V2) are")


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status)


def main() -> int:
    parser = argparse.ArgumentParser(parents=[model_server.parser], prog="server", conflict_handler="resolve")
    parser.add_argument("--model_dir", type=Path, default=Path("/mnt/models"))
    parser.add_argument("--host", default="127.0.0.1", help="the address of both ports; the image says the pod's")
    parser.add_argument("--metrics_port", type=int, default=8082)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    service, archive, settings = read_config(options.model_dir)
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        model = load(service, archive, Path(scratch), settings)
        server = ModelServer(http_port=options.http_port, enable_grpc=False)
        server.register_model(model)
        # Before KServe's own of the same path, which are registered when it starts.
        front = Front(server)
        for path in _PREDICT:
            model_server.app.add_api_route(path, front.predict, methods=["POST"], response_model=None)
        for path in _NOT_SERVED:
            model_server.app.add_api_route(path, _not_served, methods=["GET", "POST"], response_model=None)
        # A line or two for each request, else.
        for logger in ("kserve.trace", "uvicorn.access"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        prometheus_client.start_http_server(options.metrics_port, options.host)
        rest = RESTServer(
            "kserve.model_server:app",
            server.dataplane,
            server.model_repository_extension,
            options.http_port,
            grace_period=_GRACE,
            timeout_keep_alive=_KEEP_ALIVE,
        )
        rest.config.host = options.host
        asyncio.run(rest.start())
    return 0


if __name__ == "__main__":
    sys.exit(main())
