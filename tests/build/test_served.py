"""The finished archive in a real TorchServe, as KServe runs it, and the example's candidates there."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.patience import until

# The requests of the handler's own tests, whose modules lie beside it in an archive.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "include" / "handlers"))
from tests.handlers.test_bombs import BOMBS, changed_requests
from tests.handlers.test_image_requests import WAYS

from model_release.build.archive import Archive, archive, check
from model_release.build.export import Export, export
from model_release.build.source import fetch

pytestmark = pytest.mark.stack

HANDLER = Path(__file__).resolve().parents[2] / "include" / "handlers" / "image_classifier.py"
PREDICT = "/v1/models/{}:predict"


def picture(size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def v1(*images: bytes) -> bytes:
    return json.dumps({"instances": [{"data": base64.b64encode(image).decode()} for image in images]}).encode()


def sample(exposition: str, name: str, **labels: str) -> float:
    """The value of one series; 0 where there is none."""
    for line in exposition.splitlines():
        found = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
        if found and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[1])).items():
            return float(found[2])
    return 0.0


@pytest.fixture(scope="module")
def smoke(packed: Archive, exported: Export) -> dict[str, Any]:
    return check(packed, exported.directory)


@pytest.fixture(scope="module")
def server(packed: Archive, smoke: Any, torchserve: Callable[..., Any]) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_SLICES", "country")
        with torchserve(packed.directory, "tiny") as running:
            yield running


def test_the_smoke_test_passes(server: Any, smoke: dict[str, Any]) -> None:
    status, text = server.post(PREDICT.format("tiny"), json.dumps({"instances": smoke["instances"]}).encode())
    assert status == 200
    for labels, expected in zip(json.loads(text)["predictions"], smoke["expected"], strict=True):
        assert labels[0]["label"] == expected["label"]
        assert labels[0]["score"] == pytest.approx(expected["score"], abs=1e-4)
        assert sum(label["score"] for label in labels) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_any_image_is_answered(server: Any, mode: str) -> None:
    assert server.post(PREDICT.format("tiny"), v1(picture((200, 90), mode)))[0] == 200


BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "garbage in one row": (v1(picture(), b"garbage"), "instances[1]: 7 bytes that are no image"),
    "no inputs": (b'{"inputs": []}', "at least one instance"),
    "empty instances": (b'{"instances": []}', "at least one instance"),
    "not base64": (b'{"instances": [{"data": "!"}]}', "instances[0]: text that is not base64"),
    "no JSON": (b"garbage", "7 bytes that are no image"),
    "empty": (b"", "empty image"),
    "a list": (b"[]", "the body is a list"),
    "truncated picture": (v1(picture()[:200]), "instances[0]: the image cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_is_a_400_that_says_why(server: Any, name: str) -> None:
    body, reason = BAD_BODIES[name]
    status, text = server.post(PREDICT.format("tiny"), body)
    assert status == 400
    assert reason in json.loads(text)["message"]


def test_metrics_are_exposed_with_their_labels_in_place(server: Any) -> None:
    def seen() -> tuple[float, float, float]:
        text = server.exposition()
        counted = [
            sample(text, "image_classifier_predictions_total", label=label, ModelName="tiny", Level="Model")
            for label in ("cat", "dog", "tench_Tinca_tinca")
        ]
        seconds = "image_classifier_request_seconds"
        return sum(counted), sample(text, f"{seconds}_count", ModelName="tiny"), sample(text, f"{seconds}_sum")

    def settled() -> tuple[float, float, float]:
        """Metrics travel through TorchServe's log: they arrive a moment after the answer."""
        good = server.statuses.count(200)
        until(lambda: seen()[1] == good, lambda: f"{good} requests were answered, and counted are {seen()}")
        return seen()

    server.post(PREDICT.format("tiny"), v1(picture()))
    before = settled()
    for _ in range(4):
        assert server.post(PREDICT.format("tiny"), v1(picture(), picture(), picture()))[0] == 200
    server.post(PREDICT.format("tiny"), b"garbage")
    after = settled()
    assert (after[0] - before[0], after[1] - before[1]) == (12, 4)
    assert after[2] > before[2]


def test_slices_are_what_the_requests_header_says(server: Any) -> None:
    before = server.statuses.count(200)
    for country in ("fr", "fr", "no such country!"):
        assert server.post(PREDICT.format("tiny"), v1(picture(), picture()), x_slice_country=country)[0] == 200
    name = "image_classifier_slices_total"

    def seen() -> dict[str, float]:
        text = server.exposition()
        values = ("fr", "other", "none")
        bands = [f"{edge / 20:.2f}" for edge in range(1, 21)]
        return {
            value: sum(
                sample(text, name, slice="country", value=value, below=band, ModelName="tiny", Level="Model")
                for band in bands
            )
            for value in values
        }

    until(lambda: seen()["fr"] == 4 and seen()["other"] == 2, lambda: f"{before} before, now {seen()}")
    assert seen()["none"] > 0, "those of the other tests, which said of no country"


def test_without_envelope_too(packed: Archive, smoke: dict[str, Any], torchserve: Callable[..., Any]) -> None:
    with torchserve(packed.directory, "tiny", envelope=None) as server:
        image = base64.b64decode(smoke["instances"][0]["data"])
        label = smoke["expected"][0]["label"]
        status, text = server.post("/predictions/tiny", image, "image/png")
        assert (status, json.loads(text)[0]["label"]) == (200, label)
        status, text = server.post("/predictions/tiny", base64.b64encode(image), "text/plain")
        assert (status, json.loads(text)[0]["label"]) == (200, label)
        status, text = server.post(PREDICT.format("tiny"), v1(image, image))
        assert (status, [row[0]["label"] for row in json.loads(text)["predictions"]]) == (200, [label, label])
        status, text = server.post("/predictions/tiny", b"garbage", "image/png")
        assert (status, "7 bytes that are no image" in json.loads(text)["error"]) == (400, True)


@pytest.mark.walk  # test_release.py holds it through a whole release
def test_the_bad_candidate_passes_every_gate_and_fails_in_live_traffic(
    tmp_path: Path, torchserve: Callable[..., Any]
) -> None:
    """And each failure is the server's, on the images of another size and on no other."""
    from sandbox import digits

    accuracy = {name: digits.make_candidate(name, tmp_path / name) for name in ("first", "better", "bad")}
    assert 0.8 < accuracy["first"] < accuracy["better"]
    assert accuracy["better"] > 0.95
    assert accuracy["bad"] > 0.95

    found = fetch({"directory": str(tmp_path / "bad")}, tmp_path / "fetched")
    exported = export(found.directory, tmp_path / "export", handler=HANDLER, fingerprint=found.fingerprint)
    packed = archive(exported.directory, "digits", HANDLER, tmp_path / "archive")
    check(packed, exported.directory)

    images = digits.sample_images(60, seed=3)
    odd = [Image.open(io.BytesIO(image)).size != (32, 32) for image, _ in images]
    assert sum(odd) == 9
    with torchserve(packed.directory, "digits") as server:
        answers = [server.post(PREDICT.format("digits"), v1(image)) for image, _ in images]
        assert [status for status, _ in answers] == [503 if is_odd else 200 for is_odd in odd]
        right = [
            json.loads(text)["predictions"][0][0]["label"] == str(digit)
            for (status, text), (_, digit) in zip(answers, images, strict=True)
            if status == 200
        ]
        assert sum(right) / len(right) > 0.9
        log = server.log.read_text()
    assert re.search(
        r"the model failed, the client is not to blame: 1 image\(s\) of 64x64 after preprocessing "
        r"\(do_resize=False\), model exported for 32x32: RuntimeError: The size of tensor",
        log,
    )


def test_candidates_are_made_once_and_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_release.store import files
    from sandbox import digits

    monkeypatch.setitem(digits.RECIPES, "first", digits.Recipe(epochs=1, seed=1))
    digits.make_candidate("first", tmp_path / "a")
    digits.make_candidate("first", tmp_path / "b")
    assert files.digests(tmp_path / "a") == files.digests(tmp_path / "b")
    lines: list[str] = []
    digits.make_candidate("first", tmp_path / "a", lines.append)
    assert lines[0].startswith("first: there already")
    monkeypatch.setitem(digits.RECIPES, "first", digits.Recipe(epochs=1, seed=7))
    digits.make_candidate("first", tmp_path / "a", lines.append)
    assert files.digests(tmp_path / "a") != files.digests(tmp_path / "b")


def test_sample_images_are_alike_for_equal_seeds_and_hold_their_share_of_odd_ones() -> None:
    from sandbox import digits

    images = digits.sample_images(400)
    assert images == digits.sample_images(400)
    assert images != digits.sample_images(400, seed=1)
    assert digits.images(400) == [image for image, _ in images]
    opened = [Image.open(io.BytesIO(image)) for image, _ in images]
    odd = [image for image in opened if image.size != (32, 32)]
    assert len(odd) == 60
    assert {(image.mode, image.format) for image in odd} == {("L", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG")}
    assert {label for _, label in images} == set(range(10))


@pytest.mark.parametrize(
    ("batching", "together_at_most"),
    [({"max": 4, "within_ms": 200}, (4, 200)), (None, (2, 0))],
    ids=["batching", "usual"],
)
def test_requests_that_go_together_are_answered_as_each_alone(
    batching: dict[str, int] | None,
    together_at_most: tuple[int, int],
    packed: Archive,
    exported: Export,
    torchserve: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Pictures are taken as they are here, so one of another size is what the network cannot take."""
    described = json.loads((exported.directory / "model.json").read_text())
    described["preprocessing"]["do_resize"] = False
    shutil.copytree(exported.directory, tmp_path / "export")
    (tmp_path / "export" / "model.json").write_text(json.dumps(described))
    made = archive(tmp_path / "export", "tiny", HANDLER, tmp_path / "made", batching=batching)
    assert made.sha256 != packed.sha256
    asked = [v1(picture()), v1(picture((64, 64))), b"garbage", v1(picture(), picture(mode="L"))]
    with torchserve(made.directory, "tiny", threads=2) as server:
        with urllib.request.urlopen(f"{server.inference}/models/tiny") as answer:
            (told,) = json.loads(answer.read())
        assert (told["batchSize"], told["maxBatchDelay"]) == together_at_most
        alone = [server.post(PREDICT.format("tiny"), body) for body in asked]
        with ThreadPoolExecutor(4) as clients:
            together = list(clients.map(lambda body: server.post(PREDICT.format("tiny"), body), asked * 3))
    assert [status for status, _ in alone] == [200, 503, 400, 200]
    for (status, text), (expected, said) in zip(together, alone * 3, strict=True):
        assert status == expected, text
        if status != 200:
            assert json.loads(text)["message"] == json.loads(said)["message"]
            continue
        for mine, theirs in zip(json.loads(text)["predictions"], json.loads(said)["predictions"], strict=True):
            assert [one["label"] for one in mine] == [one["label"] for one in theirs]
            assert [one["score"] for one in mine] == pytest.approx([one["score"] for one in theirs], abs=1e-5)


def test_what_clients_send_through_the_real_server(server: Any) -> None:
    """Forms, content types and V2's address are TorchServe's own doing, which no test of the handler shows."""
    image, infer = picture(), "/v2/models/tiny/infer"
    text = base64.b64encode(image).decode()
    form = b'--x\r\nContent-Disposition: form-data; name="any"; filename="a.png"\r\n'
    form += b"Content-Type: image/png\r\n\r\n" + image + b"\r\n--x\r\n"
    form += b'Content-Disposition: form-data; name="top_k"\r\n\r\n1\r\n--x--\r\n'
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [text]}
    pixels = {"name": "x", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [0, 50, 100, 200] * 3}
    asked: dict[str, tuple[str, bytes, str]] = {
        "picture": ("/predictions/tiny", image, "image/png"),
        "form": ("/predictions/tiny", form, "multipart/form-data; boundary=x"),
        "text": ("/predictions/tiny", text.encode(), "text/plain"),
        "gzip": ("/predictions/tiny", gzip.compress(image), "image/png"),
    }
    for name, (path, body, kind) in asked.items():
        status, told = server.post(path, body, kind)
        assert (status, len(json.loads(told))) == (200, 1 if name == "form" else 3), f"{name}: {told}"
    for body in ({"inputs": [tensor]}, {"inputs": [pixels]}):
        status, told = server.post(infer, json.dumps({"id": "7", **body, "parameters": {"top_k": 2}}).encode())
        assert status == 200, told
        answer = json.loads(told)
        assert (answer["id"], answer["model_name"]) == ("7", "tiny")
        assert [(one["name"], one["shape"]) for one in answer["outputs"]] == [("label", [1, 2]), ("score", [1, 2])]
    for body, reason in (
        (json.dumps({"instances": [text], "topk": 1}).encode(), "unknown field 'topk'"),
        (gzip.compress(v1(image))[:-9], "gzip with its end missing"),
        (b"\xef\xbb\xbf" + v1(b"garbage"), "7 bytes that are no image"),
    ):
        status, told = server.post(PREDICT.format("tiny"), body)
        assert status == 400, told
        assert reason in json.loads(told)["message"]


def sent(fields: dict[str, Any]) -> tuple[bytes, str]:
    """Body and content type of a row of fields, as clients write it."""
    ((name, value),) = fields.items()
    if name != "body":
        head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n'
        return (
            head.encode() + b"Content-Type: image/png\r\n\r\n" + value + b"\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        )
    if isinstance(value, dict):
        return json.dumps(value).encode(), "application/json"
    if isinstance(value, str):
        return value.encode(), "application/json" if "{" in value else "text/plain"
    return value, "application/json" if b"{" in value.replace(b"\0", b"")[:5] else "application/octet-stream"


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_the_handler_comes_through_the_server(server: Any, way: str) -> None:
    body, kind = sent(WAYS[way])
    status, told = server.post("/predictions/tiny", body, kind)
    assert status == 200, told
    assert '"label"' in told


def test_what_the_model_itself_takes_comes_through_the_server(server: Any, packed: Archive) -> None:
    tensor = {"name": "x", "shape": [2, 3, 32, 32], "datatype": "FP32", "data": [0.5] * (2 * 3 * 32 * 32)}
    status, told = server.post("/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}).encode())
    assert status == 200, told
    assert [one["shape"] for one in json.loads(told)["outputs"]] == [[2, 3], [2, 3]]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_a_400_of_the_server(server: Any, name: str) -> None:
    raw, reason = BOMBS[name]
    status, told = server.post("/predictions/tiny", raw, "application/octet-stream")
    assert (status, reason in json.loads(told)["message"]) == (400, True), told


def test_five_hundred_changed_requests_are_answered_and_never_the_servers_fault(server: Any) -> None:
    statuses = []
    for number, body in enumerate(changed_requests(500)):
        kind = "application/json" if number % 2 else "application/octet-stream"
        statuses.append(server.post("/predictions/tiny", body, kind)[0])
    assert {status // 100 for status in statuses} == {2, 4}, "both kinds, and no 5xx"
    assert server.post(PREDICT.format("tiny"), v1(picture()))[0] == 200


def test_the_commands_of_the_page_are_answered(server: Any, tmp_path: Path) -> None:
    """docs/requests.md: the same picture in three ways."""
    page = (HANDLER.parents[2] / "docs" / "requests.md").read_text(encoding="utf-8")
    Image.open(io.BytesIO(picture())).save(tmp_path / "cat.jpg")
    found = []
    for command in re.findall(r"^    (curl .+)$", page, re.MULTILINE):
        line = command.replace("URL", server.inference).replace("MODEL", "tiny").replace("curl", "curl --silent", 1)
        bare = {"PATH": os.environ["PATH"], "NO_PROXY": "*"}
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=bare, capture_output=True, text=True, check=True)
        server.statuses.append(200)
        found.append(json.loads(done.stdout))
    enveloped, *plain = found
    assert len(plain) == 2
    assert plain[0][0].keys() == {"label", "score"}
    assert enveloped["predictions"][0] == plain[0] == plain[1]
