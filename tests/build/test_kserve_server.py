"""Runtime kserve: KServe's own server with a version, as the sandbox and the serving image start it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
from tests.patience import LIMIT

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "include" / "handlers"))
from tests.handlers.test_image_requests import WAYS

from model_release.build.archive import Archive
from sandbox.container import Container, ContainerFailed
from sandbox.kserve_server import KServeServer
from sandbox.servers import server_of
from sandbox.torchserve import TorchServe

from .conftest import ROOT, Server, eventually
from .test_served import BAD_BODIES, picture, sample, v1

pytestmark = pytest.mark.stack

SERVER = ROOT / "include" / "images" / "serving-kserve" / "server.py"
PREDICT, INFER = "/v1/models/tiny:predict", "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def python() -> Path:
    """Of KServe's environment, which is made where it is not there: seconds, from what the installer has kept."""
    subprocess.run([sys.executable, str(ROOT / ".ci" / "install.py"), "kserve"], check=True)
    from sandbox import programs as sandbox

    return sandbox.kserve_python()


@contextlib.contextmanager
def _serving(directory: Path) -> Iterator[Server]:
    """As the sandbox starts it."""
    folder = Path(tempfile.mkdtemp(prefix="kserve-"))
    log = folder / "log"
    with asyncio.Runner() as runner:
        started = KServeServer(
            Container(
                "tests/kserve",
                state_dir=folder,
                model=directory,
                folder=folder / "own",
                sockets=folder / "s",
                log=log,
                env={"MODEL_SLICES": "country"},
            )
        )
        runner.run(started.child.start())
        try:
            url = f"http://127.0.0.1:{started.inference_port}"
            asked = partial(urllib.request.urlopen, f"{url}/v1/models/tiny", timeout=LIMIT)
            eventually(asked, log, lambda: started.child.running)
            yield Server(url, f"http://127.0.0.1:{started.metrics_port}", log)
        finally:
            runner.run(started.stop())
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(python: Path, version: Archive) -> Iterator[Server]:
    with _serving(version.directory) as started:
        yield started


def test_kserves_server_answers_in_both_protocols(server: Server, version: Archive) -> None:
    smoke = json.loads((version.directory / "smoke.json").read_text())
    status, text = server.post(PREDICT, json.dumps({"instances": smoke["instances"]}).encode())
    assert status == 200
    for labels, expected in zip(json.loads(text)["predictions"], smoke["expected"], strict=True):
        assert labels[0]["label"] == expected["label"]
        assert labels[0]["score"] == pytest.approx(expected["score"], abs=1e-4)
    pictures = [one["data"] for one in smoke["instances"]]
    asked = {"id": "7", "inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "data": pictures}]}
    status, text = server.post(INFER, json.dumps(asked).encode())
    said = json.loads(text)
    assert (status, said["id"], said["model_name"]) == (200, "7", "tiny")
    assert said["outputs"][0]["data"][::3] == [one["label"] for one in smoke["expected"]]
    for path in ("/v1/models/tiny", "/v2/models/tiny/ready", "/v2/health/ready", "/"):
        with urllib.request.urlopen(server.inference + path, timeout=LIMIT) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("way", [way for way, fields in WAYS.items() if isinstance(fields.get("body"), bytes | dict)])
def test_it_reads_what_the_handler_of_torchserve_reads(server: Server, way: str) -> None:
    body = WAYS[way]["body"]
    assert server.post(PREDICT, body if isinstance(body, bytes) else json.dumps(body).encode())[0] == 200


def test_it_reads_forms(server: Server) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n%b\r\n--x--\r\n' % picture()
    assert server.post(PREDICT, part, "multipart/form-data; boundary=x")[0] == 200
    twice = part.removesuffix(b"--x--\r\n") + part
    for body, kind, reason in (
        (twice, "multipart/form-data; boundary=x", "expected one picture, found 'photo', 'photo again'"),
        (part.replace(b'name="photo"; ', b""), "multipart/form-data; boundary=x", "name"),
        (part, "multipart/form-data", "boundary"),
        (picture(), "application/x-www-form-urlencoded", "bad input"),
    ):
        status, told = server.post(PREDICT, body, kind)
        assert (status, reason in told) == (400, True), told


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_is_a_400_that_says_why(server: Server, name: str) -> None:
    body, reason = BAD_BODIES[name]
    status, text = server.post(PREDICT, body)
    assert status == 400
    assert reason in json.loads(text)["error"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/models/other:predict", 404),
        ("/v1/models/tiny:explain", 404),
        ("/v2/models/tiny/versions/2/infer", 404),
        ("/v2/repository/models/tiny/unload", 404),
        ("/v2/repository/models/tiny/load", 404),
        (f"{PREDICT}?top_k=1", 400),
    ],
)
def test_nothing_that_a_client_asks_for_is_the_servers_fault_or_ends_the_model(
    server: Server, path: str, expected: int
) -> None:
    assert server.post(path, v1(picture()))[0] == expected
    assert server.post(PREDICT, v1(picture()))[0] == 200


def test_it_listens_at_two_ports_and_for_no_grpc(server: Server) -> None:
    """A call of gRPC that fails is a 200 to whoever counts, and KServe's server for it lets anybody end the model."""
    ports = sorted(int(url.rpartition(":")[2]) for url in (server.inference, server.metrics))
    listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    (process,) = {one.pid for one in listening if one.laddr.port in ports}
    found = sorted(tuple(one.laddr) for one in listening if one.pid == process)
    assert found == [("127.0.0.1", port) for port in ports]


def test_a_body_over_the_limit(server: Server) -> None:
    status, text = server.post(PREDICT, b"x" * (33_554_432 + 1))
    assert (status, json.loads(text)["error"]) == (413, "the request is over the limit of 32 MiB")


def test_metrics_have_the_names_and_labels_that_torchserve_has(server: Server) -> None:
    bands = [f"{edge / 20:.2f}" for edge in range(1, 21)]

    def seen() -> tuple[float, ...]:
        text = server.exposition()
        counted = [
            sample(text, "image_classifier_predictions_total", label=label, ModelName="tiny", Level="Model")
            for label in ("cat", "dog", "tench_Tinca_tinca")
        ]
        sure, certain = (
            sum(
                sample(text, f"image_classifier_{name}_total", below=band, ModelName="tiny", Level="Model")
                for band in bands
            )
            for name in ("confidence", "certainty")
        )
        return sum(counted), sure, certain, sample(text, "image_classifier_request_seconds_count", ModelName="tiny")

    server.post(PREDICT, v1(picture()))
    before = seen()
    for _ in range(4):
        assert server.post(PREDICT, v1(picture(), picture(), picture()))[0] == 200
    server.post(PREDICT, b"garbage")
    after = seen()
    assert tuple(now - then for now, then in zip(after, before, strict=True)) == (12, 12, 12, 4)


def test_slices_are_what_the_requests_header_says(server: Server) -> None:
    def seen(value: str) -> float:
        return sum(
            sample(server.exposition(), "image_classifier_slices_total", slice="country", value=value, below=band)
            for band in (f"{edge / 20:.2f}" for edge in range(1, 21))
        )

    for country in ("fr", "fr", "no such country!"):
        assert server.post(PREDICT, v1(picture(), picture()), x_slice_country=country)[0] == 200
    assert (seen("fr"), seen("other")) == (4, 2)
    before = seen("none")
    assert server.post(PREDICT, v1(picture()))[0] == 200
    assert seen("none") == before + 1


def test_a_network_that_fails_is_the_servers_fault(server: Server, version: Archive, tmp_path: Path) -> None:
    """As with the bad candidate of `make release`: pictures of another size, which nobody resizes. In a batch, too, it
    is that request's alone."""
    shutil.copytree(version.directory, tmp_path / "x")
    settings = tmp_path / "x" / "config" / "serving.json"
    batching = {"max": 4, "within_ms": 200}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "batching": batching}))
    with zipfile.ZipFile(version.file) as packed, zipfile.ZipFile(tmp_path / "x/model-store/tiny.zip", "w") as as_cut:
        for name in packed.namelist():
            data = packed.read(name)
            as_cut.writestr(name, data.replace(b'"do_resize": true', b'"do_resize": false'))
    with _serving(tmp_path / "x") as as_cut_server:
        assert as_cut_server.post(PREDICT, v1(picture((32, 32))))[0] == 200
        status, text = as_cut_server.post(PREDICT, v1(picture((64, 64))))
        assert (status, json.loads(text)) == (503, {"error": "Prediction failed"})
        asked = [v1(picture()), v1(picture((64, 64))), b"garbage", v1(picture(), picture(mode="L"))]
        alone = [as_cut_server.post(PREDICT, body) for body in asked]
        with ThreadPoolExecutor(4) as clients:
            together = list(clients.map(lambda body: as_cut_server.post(PREDICT, body), asked * 3))
        log = as_cut_server.log.read_text()
    assert [status for status, _ in alone] == [200, 503, 400, 200]
    for (status, text), (expected, said) in zip(together, alone * 3, strict=True):
        assert status == expected, text
        assert text == said if status != 200 else json.loads(text).keys() == {"predictions"}
    assert "the model failed, the client is not to blame: 1 image(s) of 64x64 after preprocessing" in log


def test_what_it_cannot_serve_ends_it_with_one_line(
    python: Path, version: Archive, packed: Archive, tmp_path: Path
) -> None:
    newer, damaged = (shutil.copytree(version.directory, tmp_path / name) for name in ("newer", "damaged"))
    for folder, built in ((newer, "99.1.0"), (damaged, "2.0.0")):
        file = folder / "config" / "serving.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "torch": built}))
    (damaged / "model-store" / "tiny.zip").write_bytes(b"no zip")
    folders = [str(packed.directory), str(newer), str(damaged), str(tmp_path)]
    program = (
        "import asyncio, runpy, sys\n"
        "from types import SimpleNamespace\n"
        "from fastapi import Request\n"
        "server, *folders = sys.argv[1:]\n"
        "sys.argv = ['server']\n"
        "module = runpy.run_path(server, run_name='server')\n"
        "main = module['main']\n"
        "for folder in folders:\n"
        "    sys.argv = ['server', '--model_dir', folder]\n"
        "    try:\n        main()\n"
        "    except SystemExit as ended:\n        print(ended)\n"
        "dataplane = SimpleNamespace(model_registry=SimpleNamespace(get_model=lambda name: name))\n"
        "front = module['Front'](SimpleNamespace(dataplane=dataplane))\n"
        "front._under_way = module['MOST_REQUESTS']\n"
        "async def body():\n    return {'type': 'http.request', 'body': b'{}', 'more_body': False}\n"
        "scope = {'type': 'http', 'method': 'POST', 'path': '/', 'query_string': b'', 'headers': []}\n"
        "scope['server'] = ('x', 80)\n"
        "said = asyncio.run(front.predict('tiny', Request(scope, body)))\n"
        "print(said.status_code, said.body.decode())\n"
    )
    command = [str(python), "-I", "-c", program, str(SERVER), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
    of_the_other, by_a_newer, no_zip, nothing, one_more = done.stdout.splitlines()
    assert of_the_other.startswith(
        f"server: {packed.directory} holds a version for runtime torchserve, and this is the server of runtime kserve"
    )
    assert by_a_newer.startswith("server: the version was built by torch 99.1.0, and this image has 2.")
    assert no_zip == "server: tiny.zip does not load: BadZipFile: File is not a zip file"
    assert nothing.endswith("serving.json: No such file or directory; the storage initializer puts it there")
    assert one_more == '503 {"error":"100 requests are under way"}', "what waits has an end, as TorchServe's queue has"


def test_the_sandbox_says_it_where_a_container_would_end(version: Archive, packed: Archive, tmp_path: Path) -> None:
    def given(made: type[KServeServer | TorchServe], directory: Path) -> str:
        container = Container("x", tmp_path, directory, tmp_path / "x", tmp_path / "y", tmp_path / "log", {})
        with pytest.raises(ContainerFailed) as failed:
            made(container)
        return str(failed.value)

    assert given(KServeServer, packed.directory).endswith("(the version is one for runtime torchserve)")
    assert given(TorchServe, version.directory).endswith("(the version is one for runtime kserve)")


def test_an_image_says_which_server_it_starts() -> None:
    own = "registry.example.com/model-release-serving-kserve"
    for image in (own, f"{own}:1", f"{own}@sha256:{'0' * 64}", "model-release-serving-kserve"):
        assert server_of(image) is KServeServer
    for image in ("model-release-serving", "pytorch/torchserve-kfs:0.12.0", ""):
        assert server_of(image) is TorchServe
