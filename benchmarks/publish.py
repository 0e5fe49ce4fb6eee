"""From a checkpoint to a version in S3, beside three plain scripts that export, archive and upload; and how often the
weights go through the S3 server meanwhile.

    python benchmarks/publish.py                # a ViT-base with random weights; prints the table
    python benchmarks/publish.py --rounds 3     # the median of three ratios

In turn, so that a machine that is busy with other things slows both. The scripts are what a team writes first:
`torch.jit.trace`, `torch-model-archiver`, `upload_file`. They read the checkpoint from a folder and check nothing. Ours
is what tasks `resolve`, `export`, `archive` and `publish` do where workers share a folder, in a process of its own: it
fetches the checkpoint from S3, compares the export with the original, has the archive answer real images without
transformers, and reads every digest. Seconds of the clock and of CPU, the second of all processes.

Counted is at the server's door, by a proxy in a round of its own: each body of more than half of the weights' bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT / "include")]

LABELS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
BLOCK = 1 << 20

EXPORT = """
import sys, torch
from transformers import AutoModelForImageClassification

class Bare(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixel_values=pixels).logits

model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    torch.jit.trace(Bare(model), torch.rand(1, 3, 224, 224)).save(sys.argv[2])
"""
ARCHIVE = """
import sys
from model_archiver.model_packaging import generate_model_archive
sys.argv[1:] = ["--model-name", "vit", "--version", "1", "--serialized-file", sys.argv[1], "--handler",
                "image_classifier", "--export-path", sys.argv[2], "--force"]
generate_model_archive()
"""
UPLOAD = """
import json, sys, boto3
boto3.client("s3", **json.loads(sys.argv[1])).upload_file(sys.argv[2], "models", "plain/vit.mar")
"""


@dataclass(frozen=True)
class Cost:
    wall: float
    cpu: float


@contextmanager
def taking() -> Iterator[list[Cost]]:
    """The cost of the block, and of the processes that it waited for."""
    found: list[Cost] = []
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    yield found
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    found.append(Cost(time.monotonic() - began, cpu))


def run(code: str, *words: str | Path) -> None:
    subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def plain(checkpoint: Path, folder: Path, client: dict[str, Any]) -> None:
    """The three scripts, one after the other."""
    run(EXPORT, checkpoint, folder / "vit.pt")
    run(ARCHIVE, folder / "vit.pt", folder)
    run(UPLOAD, json.dumps(client), folder / "vit.mar")


def ours(folder: Path, client: dict[str, Any], prefix: str) -> None:
    """In a process of its own, as a worker has."""
    words = [sys.executable, str(Path(__file__)), "--publish", json.dumps(client), "--into", prefix]
    subprocess.run([*words, "--folder", str(folder)], check=True, stdout=subprocess.DEVNULL)


def publish(client: dict[str, Any], prefix: str, folder: Path) -> None:
    """What the tasks of a build do, one after the other."""
    import boto3

    from model_release.build import export, runtimes, source, steps
    from model_release.store.here import Here
    from model_release.store.store import Store

    s3 = boto3.client("s3", **client)
    store = Store(s3, f"s3://models/{prefix}/", here=Here(folder / "builds", 20 * 10**9))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = {"s3": "s3://models/source/"}
        found = source.fetch(place, Path(scratch, "checkpoint"), reach=lambda _: s3)
        handler = runtimes.handler(ROOT, "torchserve")
        assert store.find(found.fingerprint, toolchain=export.toolchain(handler)) is None
        build = hashlib.sha256(prefix.encode()).hexdigest()[:16]
        store.stash(f"{build}/checkpoint", found.directory, found.digests)
        for step in ("export", "archive"):
            asked = steps.Request(step, build, "vit", found.fingerprint)
            steps.run(store, asked, ROOT, lambda _: s3, print)
        sums = store.unstash(f"{build}/archive", Path(scratch, "archive"))
        store.unstash(f"{build}/export", Path(scratch, "export"), only=[export.REPORT])
        report = export.load(Path(scratch, "export")).report
        about = {**report, "service": "vit", "source": {"origin": found.origin}}
        store.publish(Path(scratch, "archive"), about, sums)


@contextmanager
def counted(address: str, large: int) -> Iterator[tuple[str, Counter[str]]]:
    """(address of a door before the server at `address`, {READ or WRITE, and the folder: bodies of so many bytes})."""
    count: Counter[str] = Counter()
    host = address.removeprefix("http://")

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            upstream = http.client.HTTPConnection(host)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    upstream.putheader(name, value)
            upstream.endheaders()
            left = sent = int(self.headers.get("Content-Length") or 0)
            while left:
                block = self.rfile.read(min(left, BLOCK))
                upstream.send(block)
                left -= len(block)
            answer = upstream.getresponse()
            self.send_response(answer.status)
            body = answer.read() if answer.chunked else None
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            if body is not None:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            came = len(body or b"")
            if body:
                self.wfile.write(body)
            while self.command != "HEAD" and body is None and (block := answer.read(BLOCK)):
                self.wfile.write(block)
                came += len(block)
            folder = [*self.path.split("?")[0].split("/"), ""][2]
            # One object may be read in several ranges, at once.
            count[f"read {folder}"] += came
            count[f"written {folder}"] += sent
            upstream.close()

        do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    times: Counter[str] = Counter()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", times
    finally:
        server.shutdown()
        times.update({name: round(total / large) for name, total in count.items() if total > large / 2})


def make_checkpoint(folder: Path) -> int:
    """Saves a ViT-base with random weights; → bytes of the weights."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    config = ViTConfig(id2label=names, label2id={name: number for number, name in names.items()})
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


async def measure(rounds: int, folder: Path) -> None:
    from sandbox.ports import Ports
    from sandbox.s3 import REGION, ModelStore

    store = ModelStore(folder / "state", Ports(folder / "state" / "ports.json"))
    await store.start()
    try:
        await store.ensure_bucket("models")
        size = make_checkpoint(folder / "checkpoint")
        for path in (folder / "checkpoint").iterdir():
            store.client().upload_file(str(path), "models", f"source/{path.name}")
        client = {
            "endpoint_url": store.url,
            "aws_access_key_id": store.access_key,
            "aws_secret_access_key": store.secret_key,
            "region_name": REGION,
        }
        with counted(store.url, size) as (door, times):
            await asyncio.to_thread(ours, folder, {**client, "endpoint_url": door}, "version")
        told = ", ".join(f"{name} {count} ×" for name, count in sorted(times.items()))
        print(f"weights of {size / 1e6:.0f} MB at the server's door: {told}", flush=True)
        ratios: list[tuple[float, float]] = []
        for number in range(rounds):
            with taking() as scripts:
                await asyncio.to_thread(plain, folder / "checkpoint", folder, client)
            with taking() as release:
                await asyncio.to_thread(ours, folder, client, f"round-{number}")
            (one,), (other) = scripts, release[0]
            print(
                f"scripts {one.wall:.0f} s ({one.cpu:.0f} of CPU), release {other.wall:.0f} s ({other.cpu:.0f})",
                flush=True,
            )
            ratios.append((other.wall / one.wall, other.cpu / one.cpu))
        wall, cpu = (statistics.median(values) for values in zip(*ratios, strict=True))
        print(f"the release takes {wall:.2f} times as long as the scripts, and {cpu:.2f} times the CPU")
    finally:
        await store.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    for name in ("--publish", "--into", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(json.loads(options.publish), options.into, Path(options.folder))
        return
    with tempfile.TemporaryDirectory(prefix="publish-") as name:
        asyncio.run(measure(options.rounds, Path(name)))


if __name__ == "__main__":
    main()
