"""What a client's picture can do, and where a secret can be read: the other half of docs/security.md's own tests."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_release.errors import ReleaseError

PROJECT = Path(__file__).resolve().parents[1]
sys.path.append(str(PROJECT / "include" / "handlers"))

import image_input  # noqa: E402
import image_pixels  # noqa: E402

SECRET = "s3cr3t-t0ken"
OPTIONS: dict[str, Any] = {
    "do_convert_rgb": True, "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2, "crop_pct": None,
    "do_center_crop": False, "crop_size": None, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False,
    "image_mean": None, "image_std": None,
}  # fmt: skip


def encoded(image: Image.Image, encoding: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, encoding, **how)
    return buffer.getvalue()


# A malicious picture


def scans(jpeg: bytes, times: int) -> bytes:
    """The JPEG with its last scan repeated."""
    last = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    return jpeg[:-2] + last * times + b"\xff\xd9"


def test_a_jpeg_of_a_thousand_scans_is_refused_at_once() -> None:
    """270 kB that keep a worker busy for half a minute; six times that are 120 s, which end it."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    progressive = encoded(photo, "JPEG", progressive=True)
    assert image_input.scans(progressive) == 10
    assert image_input.scans(encoded(photo, "JPEG")) == 1
    assert image_input.read_image(scans(progressive, 50)).size == (300, 200)
    with pytest.raises(image_input.BadInput, match="a JPEG of more than 64 scans"):
        image_input.read_image(scans(progressive, 1000))


def test_what_lies_behind_a_jpeg_or_in_its_notes_is_no_scan() -> None:
    """Phones put a film behind a photograph, and a smaller picture into it."""
    jpeg = encoded(Image.new("RGB", (20, 10)), "JPEG")
    noted = jpeg[:2] + b"\xff\xe1" + (2 + 400).to_bytes(2, "big") + b"\xff\xda" * 200 + jpeg[2:]
    for picture in (jpeg + b"\xff\xda" * 1000, noted):
        assert image_input.scans(picture) == 1
        assert image_input.read_image(picture).size == (20, 10)


def test_all_pictures_of_a_request_have_a_limit_whether_or_not_they_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_input, "MAX_REQUEST_PIXELS", 2_000_000)
    picture = encoded(Image.new("RGB", (1000, 900)), "PNG")
    assert len(image_input.read_instances([picture] * 2, OPTIONS)) == 2
    for pictures in ([picture] * 3, [picture[:-40]] * 2 + [picture]):
        with pytest.raises(image_input.BadInput, match=r"instances\[2\]: .* together more than 2 megapixels"):
            image_input.read_instances(pictures, OPTIONS)


def test_a_picture_that_is_not_made_small_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_input, "MAX_KEPT_PIXELS", 1_000_000)
    picture = encoded(Image.new("RGB", (1100, 1000)), "PNG")
    assert len(image_input.read_instances([picture], OPTIONS)) == 1
    with pytest.raises(image_input.BadInput, match="1100x1000 pixels, over the limit of 1 megapixels"):
        image_input.read_instances([picture], {**OPTIONS, "do_resize": False})


def test_of_an_animation_the_first_picture_is_decoded() -> None:
    pictures = [Image.new("P", (400, 300), colour) for colour in range(100)]
    for encoding in ("GIF", "WEBP", "PNG"):
        animation = encoded(pictures[0], encoding, save_all=True, append_images=pictures[1:])
        assert image_input.read_image(animation).size == (400, 300)


@pytest.mark.parametrize("mode", ["P", "I;16"])
def test_bands_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    if mode == "I;16":
        file = encoded(Image.fromarray(random.integers(0, 65535, (37, 50), np.uint16)), "PNG")
    else:
        colours = Image.fromarray(random.integers(0, 255, (37, 50, 3), np.uint8)).quantize(8)
        file = encoded(colours, "PNG", transparency=3)
    kept = {**OPTIONS, "do_resize": False}
    (whole,) = image_input.read_instances([file], kept)
    monkeypatch.setattr(image_pixels, "_BAND", 50 * 7)
    (banded,) = image_input.read_instances([file], kept)
    np.testing.assert_array_equal(banded, whole)
    assert mode != "P" or 0 < (whole.min(0) == 1).mean() < 1


@pytest.mark.parametrize(
    ("encoding", "mode", "side"), [("PNG", "RGBA", 7000), ("PNG", "P", 7000), ("WEBP", "RGBA", 5000)]
)
def test_the_largest_picture_takes_no_more_than_600_megabytes(encoding: str, mode: str, side: int) -> None:
    """A black one is a file of 2 to 200 kB. Its memory is counted in a child, in which nothing else happens."""
    how = {"lossless": True, "method": 0} if encoding == "WEBP" else {"compress_level": 1}
    if mode == "P":
        how["transparency"] = 0
    picture = encoded(Image.new(mode, (side, side)), encoding, **how)
    assert len(picture) < 1_000_000
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _peak()
        image_input.read_instances([picture], OPTIONS)
        os.write(write, str(_peak() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    assert 100_000_000 < int(os.read(read, 100)) < 600_000_000
    os.close(read)


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


# Where a secret can be read


class Echo(BaseHTTPRequestHandler):
    """Refuses, repeating what it was sent: the most talkative of servers."""

    def do_GET(self) -> None:
        body = f"no: {dict(self.headers)}".encode()
        self.send_response(int(self.path.rsplit("/", 1)[-1]) if self.path[-3:].isdigit() else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def echo() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def all_of(error: BaseException) -> str:
    """The error with everything that it came from, as a log shows it, its objects' reprs included."""
    chain, parts = [error], []
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    for one in chain:
        parts += ["".join(traceback.format_exception(one)), repr(one), repr(vars(one))]
    return "\n".join(parts)


@pytest.mark.parametrize("gone", [False, True], ids=["refused", "unreachable"])
def test_no_key_of_s3_is_in_an_error_or_a_log(gone: bool, echo: str, caplog: pytest.LogCaptureFixture) -> None:
    import boto3
    from botocore.config import Config

    from model_release.store.store import Store

    caplog.set_level(logging.INFO)
    client = boto3.client(
        "s3", endpoint_url="http://127.0.0.1:9" if gone else echo, region_name="us-east-1",
        aws_access_key_id="AKIDENTITY", aws_secret_access_key=SECRET, config=Config(retries={"max_attempts": 1}),
    )  # fmt: skip
    store = Store(client, "s3://models/digits/")
    with pytest.raises(ReleaseError) as refused:
        store.read_json("releases/one.json")
    everything = f"{all_of(refused.value)}{store!r}{caplog.text}"
    assert "s3://models/digits/releases/one.json" in everything
    assert SECRET not in everything


@pytest.mark.parametrize("gone", [False, True], ids=["refused", "unreachable"])
def test_no_token_of_the_cluster_is_in_an_error_or_a_log(
    gone: bool, echo: str, caplog: pytest.LogCaptureFixture
) -> None:
    from kubernetes.client import ApiClient, Configuration

    from model_release.cluster.services import InferenceServices

    caplog.set_level(logging.INFO)
    configuration = Configuration(host="http://127.0.0.1:9" if gone else echo)
    configuration.retries = False
    configuration.api_key = {"authorization": f"Bearer {SECRET}"}
    services = InferenceServices(ApiClient(configuration))
    with pytest.raises(ReleaseError) as refused:
        services.get("models", "digits")
    assert "models" in str(refused.value)
    assert SECRET not in f"{refused.value}{refused.value!r}{services!r}{caplog.text}"


def test_no_token_of_the_hub_is_in_what_describes_its_access() -> None:
    from model_release.build.hub import HubAccess

    assert SECRET not in repr(HubAccess("https://hub.example", SECRET))


def test_a_token_for_prometheus_does_not_follow_a_redirect_to_somebody_else() -> None:
    from model_release.errors import MetricsRefused
    from model_release.metrics.prometheus import Prometheus

    seen: list[str | None] = []

    class Other(Echo):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        Thread(target=other.serve_forever, daemon=True).start()

        class Redirecting(Echo):
            def do_GET(self) -> None:
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.1:{other.server_port}/")
                self.send_header("Content-Length", "0")
                self.end_headers()

        with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as first:
            Thread(target=first.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{first.server_port}"
            with Prometheus(address, token=SECRET) as prometheus, pytest.raises(MetricsRefused):
                prometheus.query("up")
            first.shutdown()
        other.shutdown()
    assert seen == [None]


def test_secrets_of_the_sandbox_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Nothing is started: what the parts write when they are made."""
    from sandbox.stack import Stack

    before = os.umask(0o022)
    try:
        stack = Stack(tmp_path / "state", project=PROJECT)
    finally:
        os.umask(before)
    state: Path = tmp_path / "state"
    secrets = {stack._store.secret_key, *json.loads((state / "airflow" / "secrets.json").read_text()).values()}
    secrets.add((state / "postgres" / "password").read_text())
    assert len(secrets) == 6
    holding = []
    for file in (path for path in state.rglob("*") if path.is_file()):
        if any(secret in file.read_text(errors="replace") for secret in secrets):
            holding.append(file.name)
            assert file.stat().st_mode & 0o077 == 0, f"{file} is open to others"
    assert {"secrets.json", "connections.json", "identities.json", "password"} <= set(holding)
    assert state.stat().st_mode & 0o077 == 0
