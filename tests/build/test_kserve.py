"""Runtime kserve: what torch.export makes of a model, the version's layout, and KServe's own server with it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.patience import LIMIT

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "include" / "handlers"))
from tests.handlers.test_image_requests import WAYS

from model_release.build import exported as programs
from model_release.build import runtimes, torchscript, trace
from model_release.build.archive import Archive, archive, check, load
from model_release.build.evaluation.answers import run
from model_release.build.export import Export, export, toolchain
from model_release.build.source import Checkpoint
from model_release.errors import ArchiveError, CheckpointError
from model_release.store import files
from sandbox.container import Container, ContainerFailed
from sandbox.kserve_server import KServeServer
from sandbox.servers import server_of
from sandbox.torchserve import TorchServe

from .conftest import HANDLER, ROOT, MakeCheckpoint, Server, eventually, run_here, tiny_model
from .test_served import BAD_BODIES, picture, sample, v1

pytestmark = pytest.mark.stack

KSERVE = runtimes.handler(ROOT, "kserve")
SERVER = ROOT / "include" / "images" / "serving-kserve" / "server.py"
PREDICT, INFER = "/v1/models/tiny:predict", "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def program(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Export:
    output = tmp_path_factory.mktemp("export") / "vit"
    return export(checkpoint.directory, output, handler=KSERVE, fingerprint=checkpoint.fingerprint)


@pytest.fixture(scope="module")
def version(program: Export, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    made = archive(program.directory, "tiny", KSERVE, tmp_path_factory.mktemp("archive") / "tiny")
    check(made, program.directory)
    return made


def test_the_version_holds_an_exported_program_and_says_so(program: Export, version: Archive) -> None:
    assert program.report["artifact"] == "torch.export"
    assert max(program.report["parity"]["largest_difference"].values()) <= 1e-5
    assert set(files.digests(version.directory)) == {"config/serving.json", "model-store/tiny.zip", "smoke.json"}
    said = json.loads((version.directory / "config" / "serving.json").read_text())
    built = toolchain(KSERVE)["torch"]
    assert said == {"runtime": "kserve", "service": "tiny", "artifact": "torch.export", "torch": built}
    with zipfile.ZipFile(version.file) as packed:
        assert {entry.compress_type for entry in packed.infolist()} == {zipfile.ZIP_STORED}
        assert packed.namelist() == [
            *("image_headers.py", "image_input.py", "image_model.py", "image_pixels.py", "image_requests.py"),
            *("image_slices.py", "kserve_model.py", "model.json", "model.pt2"),
        ]
        for name in packed.namelist():
            assert str(ROOT).encode() not in packed.read(name), "nothing says where it was built"


def test_equal_input_gives_equal_bytes(program: Export, version: Archive, tmp_path: Path) -> None:
    again = archive(program.directory, "tiny", KSERVE, tmp_path / "again")
    assert (again.sha256, again.size) == (version.sha256, version.size)
    assert load(again.directory, "tiny") == again
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        programs.write(Small(), [(8, 8)], tmp_path / name / programs.FILE, any_size=False)
    assert (tmp_path / "a" / programs.FILE).read_bytes() == (tmp_path / "b" / programs.FILE).read_bytes()


def test_the_two_runtimes_have_toolchains_of_their_own() -> None:
    mine, theirs = toolchain(KSERVE), toolchain(HANDLER)
    assert mine["handler"] != theirs["handler"], "so neither finds the other's versions"
    assert set(theirs) - set(mine) == {"torch-model-archiver", "response_timeout"}


class Small(torch.nn.Module):
    """Logits of any size of picture."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((-1, -2))


class Undecided(Small):
    """Its way depends on the numbers, which no graph of operators holds."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels) if bool(pixels.sum() > 0) else -super().forward(pixels)


class OfTwo(Small):
    """Its batch is fixed."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.reshape(2, 3, -1).mean(-1)


@pytest.mark.parametrize("network", [Undecided, OfTwo])
def test_a_network_that_export_cannot_take_is_refused_in_one_line(
    network: type[torch.nn.Module], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"^torch\.export cannot take the network: .+") as refused:
        programs.write(network().eval(), [(8, 8)], tmp_path / "x.pt2", any_size=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "x.pt2").exists()


def test_pictures_of_other_sizes_are_answered_where_the_network_can(tmp_path: Path) -> None:
    programs.write(Small(), [(8, 8)], tmp_path / "any.pt2", any_size=True)
    assert programs.load(tmp_path / "any.pt2")(torch.ones(1, 3, 40, 17)).tolist() == [[1.0, 1.0, 1.0]]
    model = tiny_model().eval()
    wrapped = trace.original.Logits(model).eval()
    programs.write(wrapped, [(32, 32)], tmp_path / "fixed.pt2", any_size=True)
    with pytest.raises(Exception, match=r"."):
        programs.load(tmp_path / "fixed.pt2")(torch.ones(1, 3, 40, 40))


def test_what_export_cannot_take_is_served_as_torchscript_and_said(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CheckpointError("torch.export cannot take the network: an operator")

    monkeypatch.setattr(programs, "write", refuse)
    report = run_here(make_checkpoint(), tmp_path / "x", runtime="kserve")
    assert report["artifact"] == "torchscript"
    assert report["notes"][-1] == (
        "torch.export cannot take the network: an operator; the version holds TorchScript instead"
    )
    assert (tmp_path / "x" / torchscript.FILE).exists()
    assert not (tmp_path / "x" / programs.FILE).exists()
    report = {**report, "toolchain": toolchain(KSERVE)}
    (tmp_path / "x" / "export.json").write_text(json.dumps(report))
    made = archive(tmp_path / "x", "tiny", KSERVE, tmp_path / "archive")
    check(made, tmp_path / "x")
    said = json.loads((made.directory / "config" / "serving.json").read_text())
    assert said["artifact"] == "torchscript"


def test_both_runtimes_answer_labelled_images_alike(version: Archive, packed: Archive, tmp_path: Path) -> None:
    """An evaluation compares a candidate of one with a stable version of the other."""
    images = {"a.png": picture(), "b.png": picture((40, 61), "L"), "c.png": b"no image"}
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    asked = [(name, tmp_path / name) for name in images]
    mine, theirs = (run(one.file, asked, batch=3, what="it", log=lambda _: None) for one in (version, packed))
    assert mine["c.png"].fault == theirs["c.png"].fault
    assert mine["c.png"].label is None
    for name in ("a.png", "b.png"):
        assert mine[name].label == theirs[name].label
        assert mine[name].score == pytest.approx(theirs[name].score, abs=1e-5)


def test_an_archive_that_would_fail_is_found_before_it_is_published(
    version: Archive, program: Export, tmp_path: Path
) -> None:
    shutil.copytree(version.directory, tmp_path / "x")
    expected = r"kserve_model\.py does not load .*: No module named 'transformers' in the serving image"
    with zipfile.ZipFile(version.file) as packed, zipfile.ZipFile(tmp_path / "x/model-store/tiny.zip", "w") as spoiled:
        for name in packed.namelist():
            data = packed.read(name)
            spoiled.writestr(name, data + b"\nimport transformers\n" if name == "image_headers.py" else data)
    with pytest.raises(ArchiveError, match=expected):
        check(load(tmp_path / "x", "tiny"), program.directory)


def test_requests_that_wait_go_through_the_network_together(version: Archive, program: Export, tmp_path: Path) -> None:
    batching = {"max": 4, "within_ms": 5}
    batched = archive(program.directory, "tiny", KSERVE, tmp_path / "batched", batching=batching)
    assert json.loads((batched.directory / "config" / "serving.json").read_text())["batching"] == batching
    assert batched.sha256 == version.sha256, "and no archive, so its evaluation, is another"
    runtimes.kserve._stand_in()  # type: ignore[attr-defined]
    with zipfile.ZipFile(version.file) as packed:
        packed.extractall(tmp_path / "x")
    model = importlib.import_module("kserve_model").ImageClassifier("tiny", tmp_path / "x", batching)
    model.load()
    network, passes = model.images.model, []
    model.images.model = lambda pixels: passes.append(len(pixels)) or network(pixels)

    async def asked(pictures: list[bytes]) -> list[Any]:
        held = threading.Event()
        model._network.submit(held.wait)
        read = [model.read({"body": one}) for one in pictures]
        waiting = [asyncio.ensure_future(model.predict((one, 0.0))) for one in read]
        gone = asyncio.ensure_future(model.predict((read[0], 0.0)))
        await asyncio.sleep(0)
        gone.cancel()
        held.set()
        return list(await asyncio.gather(*waiting))

    pictures = [picture(), picture((40, 61), "L"), picture(mode="P"), picture((9, 9)), picture(mode="1")]
    together = asyncio.run(asked(pictures))
    assert passes == [4, 1], "as many as may, and for one whose client has gone nothing is done"
    for one, pictured in zip(together, pictures, strict=True):
        (alone,) = model.classified([model.read({"body": pictured})])[0]
        assert [label["label"] for label in one] == [label["label"] for label in alone]
        assert [label["score"] for label in one] == pytest.approx([label["score"] for label in alone], abs=1e-5)


# KServe's own server


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
            eventually(lambda: urllib.request.urlopen(f"{url}/v1/models/tiny", timeout=LIMIT), log)
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
