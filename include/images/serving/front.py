"""What KServe expects of a model server, before TorchServe: port 8080, protocols V1 and V2, a readiness to believe.

The upstream image has KServe's Python wrapper for this, and with it transformers and an older torch. This front starts
TorchServe, forwards predictions, and ends with it:

- `GET /v1/models/NAME` is 200 only while a worker of the model is READY (TorchServe's own `/ping` is healthy with dead
  ones), else 503; 404 for another name;
- `POST /v1/models/NAME:predict` is TorchServe's answer, as it is; a query, which TorchServe would drop, is refused, and
  so is a form with two fields of one name; a body that is not what its headers say is the client's fault (400), where
  TorchServe has 500;
- `GET /v2/models/NAME/ready` and `POST /v2/models/NAME/infer` are the same in protocol V2;
- more requests than TorchServe lets wait are 503 at once, in words that say so, and `GET` goes on being answered;
- `GET /` is 200: the container lives.

TorchServe's inference and management address must be one on loopback, as in every version that this project makes:
who reaches the management API can load code.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import aiohttp
from aiohttp import web

_log = logging.getLogger("front")
_LARGEST_REQUEST = 32 * 2**20
#: Requests that were read and are under way, or wait: as many as TorchServe's queue has
#: (docs/facts.md#a-full-queue-is-a-503). More are answered 503.
MOST_REQUESTS = 100
_GRACE = 20.0
# Of a form: how many fields are looked at, and how many bytes of each for its name. A picture goes with one or two.
_FIELDS, _HEAD = 64, 4096
# What TorchServe calls it when it cannot take a form apart, above all a picture with the Content-Type that curl has for
# --data-binary where nobody says another.
_NO_FORM = b'"ErrorDataDecoderException"'
_RIGHT = "a picture goes with image/jpeg or application/octet-stream, JSON with application/json"


def read_config(file: Path) -> tuple[str, frozenset[str]]:
    """(TorchServe's address, names of its models) of a version's `config.properties`. Raises SystemExit, one line."""
    try:
        text = file.read_text(encoding="utf-8").replace("\\\n", "")
    except OSError as error:
        if (file.parent / "serving.json").exists():
            raise SystemExit(
                "front: the version is one for runtime kserve, and this is the server of runtime torchserve; the model "
                "file's runtime and service.runtime must name the same"
            ) from None
        raise SystemExit(f"front: {file}: {error.strerror}; the storage initializer puts it there") from None
    said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    address = said.get("inference_address", "")
    if not address.startswith("http://127.0.0.1:") or said.get("management_address") != address:
        raise SystemExit(f"front: {file}: inference_address and management_address must be one, http://127.0.0.1:PORT")
    try:
        return address, frozenset(json.loads(said["model_snapshot"])["models"])
    except (KeyError, ValueError, TypeError):
        raise SystemExit(f"front: {file}: model_snapshot names no models") from None


class Front:
    """The routes. `address` is TorchServe's, `models` the names it serves."""

    def __init__(self, address: str, models: frozenset[str], http: aiohttp.ClientSession) -> None:
        self._address, self._models, self._http = address, models, http
        self._under_way = 0

    def application(self) -> web.Application:
        application = web.Application(client_max_size=_LARGEST_REQUEST)
        application.add_routes(
            [
                web.get("/", self._alive),
                web.get("/v1/models/{name}", self._ready),
                web.post("/v1/models/{name}:predict", self._predict),
                web.get("/v2/models/{name}/ready", self._ready),
                web.post("/v2/models/{name}/infer", self._predict),
            ]
        )
        return application

    async def _alive(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _ready(self, request: web.Request) -> web.Response:
        name = self._name(request)
        ready = await self._has_worker(name)
        return web.json_response({"name": name, "ready": ready}, status=200 if ready else 503)

    async def _predict(self, request: web.Request) -> web.Response:
        name = quote(self._name(request))
        path = f"/v2/models/{name}/infer" if request.path.startswith("/v2/") else f"/v1/models/{name}:predict"
        if request.query_string:
            # TorchServe drops it here in silence.
            wrong = {"error": f"the query ({request.query_string[:80]}) is not read; top_k belongs into parameters"}
            return web.json_response(wrong, status=400)
        try:
            body = await request.read()  # without its Content-Encoding
        except web.RequestPayloadError:
            packed = request.headers.get("Content-Encoding", "")[:40]
            return web.json_response({"error": f"the body cannot be unpacked as {packed or 'it comes'}"}, status=400)
        kind = _ascii(request.headers.get("Content-Type", "application/json"))
        said = {one: _ascii(text) for one, text in request.headers.items() if one.lower().startswith("x-slice-")}
        headers = {"Content-Type": kind, **said}
        if name_twice := _twice(kind, body):
            return web.json_response({"error": f"two fields of the form are {name_twice[:40]!r}"}, status=400)
        if self._under_way >= MOST_REQUESTS:
            _log.warning("%d requests are under way: one more is answered 503", MOST_REQUESTS)
            return web.json_response({"error": f"{MOST_REQUESTS} requests are under way"}, status=503)
        self._under_way += 1
        try:
            async with self._http.post(self._address + path, data=body, headers=headers) as answer:
                told, its_kind = await answer.read(), answer.headers.get("Content-Type", "application/json")
                if answer.status == 500 and _NO_FORM in told:
                    wrong = {"error": f"the body is no form, as {kind[:80]!r} says; {_RIGHT}"}
                    return web.json_response(wrong, status=400)
                return web.Response(status=answer.status, body=told, headers={"Content-Type": its_kind})
        except aiohttp.ClientError as error:
            return web.json_response({"error": f"TorchServe does not answer: {type(error).__name__}"}, status=503)
        finally:
            self._under_way -= 1

    def _name(self, request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in self._models:
            raise web.HTTPNotFound(
                text=json.dumps({"error": f"Model with name {name} does not exist."}), content_type="application/json"
            )
        return name

    async def _has_worker(self, name: str) -> bool:
        try:
            async with self._http.get(f"{self._address}/models/{quote(name)}") as answer:
                versions = await answer.json(content_type=None) if answer.status == 200 else []
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        return any(worker.get("status") == "READY" for one in versions for worker in one.get("workers", ()))


def _ascii(text: str) -> str:
    """Other than ASCII no header may be, and aiohttp would not send it on."""
    return text.encode("ascii", "replace").decode()


def _twice(kind: str, body: bytes) -> str | None:
    """The name that two fields of a form have: TorchServe drops one of them in silence."""
    boundary = re.search(r'^multipart/form-data\b.*\bboundary="?([^";,]+)', kind, re.IGNORECASE)
    if boundary is None:
        return None
    parts = body.split(b"--" + boundary[1].encode(), _FIELDS)[1:]
    heads = (part[:_HEAD].partition(b"\r\n\r\n")[0] for part in parts)
    found = (re.search(rb"content-disposition:.*?\bname=\"?([^\";\r\n]+)", head, re.IGNORECASE) for head in heads)
    names = Counter(name[1].decode(errors="replace") for name in found if name)
    return next((name for name, count in names.items() if count > 1), None)


async def serve(config: Path, port: int, command: list[str]) -> int:
    """Runs `command` and the front until SIGTERM, or until TorchServe ends; its exit code, 1 where that was 0."""
    address, models = read_config(config)
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
    ended = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, ended.set)
    # No limit: aiohttp's own, 100, would let a probe wait behind predictions, and a pod that is busy be taken for dead.
    pool = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=pool, timeout=aiohttp.ClientTimeout(total=None, connect=5)) as http:
        runner = web.AppRunner(Front(address, models, http).application(), access_log=None, shutdown_timeout=_GRACE)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104 - the pod's address
        waits = [asyncio.create_task(process.wait()), asyncio.create_task(ended.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        by_itself = process.returncode is not None and not ended.is_set()
        # What is under way is answered before TorchServe is told to go.
        await runner.cleanup()
    await _end(process)
    for wait in waits:
        wait.cancel()
    if by_itself:
        _log.error("TorchServe ended by itself with code %s", process.returncode)
        return process.returncode or 1
    return 0


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the command alone would leave Java and the workers serving: the whole group gets it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(prog="front", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--config", type=Path, default=Path("/mnt/models/config/config.properties"))
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("command", nargs="+", help="after --: how TorchServe is started")
    options = parser.parse_args()
    return asyncio.run(serve(options.config, options.port, options.command))


if __name__ == "__main__":
    sys.exit(main())
