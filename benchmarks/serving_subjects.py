"""What `serving.py` measures: the versions, the pictures that are sent, the servers, and what they are held to.

python benchmarks/serving_subjects.py bare FOLDER             # the limit: answers a line "LOAD FIRST COUNT"
python benchmarks/serving_subjects.py pipeline FOLDER PORT    # transformers' pipeline behind uvicorn
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT / "plugins"), str(PROJECT / "include")]

import aiohttp  # noqa: E402
from PIL import Image  # noqa: E402

from model_release.build import archive, export, runtimes, source  # noqa: E402
from sandbox.container import Container  # noqa: E402
from sandbox.kserve_server import KServeServer  # noqa: E402
from sandbox.ports import free_port  # noqa: E402
from sandbox.process import Child  # noqa: E402
from sandbox.torchserve import TorchServe  # noqa: E402

NAME = "bench"
PATH = f"/v1/models/{NAME}:predict"
CACHE = PROJECT / ".cache" / "serving"
MODELS = {"tiny": (192, 3), "base": (768, 12)}  # hidden size, heads; twelve layers, patches of 16 in 224x224
BATCHING = {"max": 8, "within_ms": 5}
LABELS = 1000
LOG = CACHE / "server.log"

_STARTING = asyncio.Lock()


@dataclass(frozen=True)
class Subject:
    """What is measured. `runtime` is None for the pipeline."""

    runtime: str | None
    precision: str = "float32"
    batching: bool = False

    @property
    def name(self) -> str:
        if self.runtime is None:
            return "pipeline"
        return f"{self.runtime} {self.precision}{' batching' if self.batching else ''}"

    @property
    def usual(self) -> bool:
        """Whether it is measured unless all are asked for: a network in fewer bits is the same one in both runtimes."""
        return not self.batching and (self.precision == "float32" or self.runtime == "kserve")


SUBJECTS = [Subject(None)] + [
    Subject(runtime, *more)
    for runtime in runtimes.NAMES
    for more in (("float32",), ("bfloat16",), ("int8",), ("float32", True), ("int8", True))
]


# What is served, and what is sent


def checkpoint(model: str) -> Path:
    """A checkpoint with random weights, made once."""
    folder = CACHE / model / "checkpoint"
    if not (folder / "preprocessor_config.json").exists():
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        hidden, heads = MODELS[model]
        names = {number: f"label {number}" for number in range(LABELS)}
        config = ViTConfig(hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden)
        config.id2label, config.label2id = names, {name: number for number, name in names.items()}
        ViTForImageClassification(config).save_pretrained(folder)
        settings = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_convert_rgb": True}
        settings |= {"size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def exported(model: str, subject: Subject) -> Path:
    """The subject's export, as a release makes it; made once for each handler."""
    handler = runtimes.handler(PROJECT, str(subject.runtime))
    digest = export.toolchain(handler)["handler"][:8]
    made = CACHE / model / f"{subject.runtime}-{subject.precision}-{digest}"
    if not (made / "export" / "export.json").exists():
        with TemporaryDirectory(prefix="benchmark-") as scratch:
            fetched = source.fetch({"directory": str(checkpoint(model))}, Path(scratch, "checkpoint"))
            asked: dict[str, Any] = {"fingerprint": fetched.fingerprint, "precision": subject.precision, "log": say}
            export.export(fetched.directory, made / "export", handler=handler, **asked)
    return made / "export"


def version(model: str, subject: Subject) -> Path:
    """What its server is given, packed anew."""
    handler, made = runtimes.handler(PROJECT, str(subject.runtime)), exported(model, subject)
    packed = made.with_name("batching" if subject.batching else "plain")
    batching = BATCHING if subject.batching else None
    return archive.archive(made, NAME, handler, packed, batching=batching, log=lambda _: None).directory


def report(model: str, subject: Subject) -> dict[str, Any]:
    """What the export said of the subject's version."""
    return export.load(exported(model, subject)).report


def requests(load: str, count: int = 64) -> list[list[bytes]]:
    """The pictures of each request, the same each time."""
    draw = random.Random(0)
    sizes = [1] if load == "one" else [1] * 12 + [2] * 4 + [4] * 3 + [8]
    kinds = [((640, 480), "JPEG")]
    if load == "mixed":
        kinds += [((1600, 1200), "JPEG"), ((224, 224), "PNG"), ((320, 240), "WEBP")]
    pictures = [_picture(*kind, seed) for seed in range(4) for kind in kinds]
    return [[draw.choice(pictures) for _ in range(draw.choice(sizes))] for _ in range(count)]


def _picture(size: tuple[int, int], kind: str, seed: int) -> bytes:
    import numpy as np

    smooth = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def bodies(load: str) -> list[bytes]:
    return [
        json.dumps({"instances": [{"data": base64.b64encode(one).decode()} for one in pictures]}).encode()
        for pictures in requests(load)
    ]


# The limit, and what is usual: programs of their own


def bare(folder: str) -> None:
    """Answers a line "LOAD FIRST COUNT" with the seconds that each of these requests took, until there are no more."""
    import numpy as np
    import torch
    from transformers import ViTForImageClassification

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = ViTForImageClassification.from_pretrained(folder).eval()
    asked = {load: requests(load) for load in ("one", "mixed")}

    def one(data: bytes) -> Any:
        picture = Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        return ((np.asarray(picture, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)

    def answer(pictures: list[bytes]) -> Any:
        with torch.inference_mode():
            logits = model(torch.from_numpy(np.stack([one(data) for data in pictures]))).logits
            return [part.tolist() for part in logits.softmax(-1).topk(5)]

    for pictures in asked["mixed"][:4]:
        answer(pictures)
    for line in sys.stdin:
        load, first, count = line.split()
        taken: list[float] = []
        for at in range(int(first), int(first) + int(count)):
            began = time.perf_counter()
            answer(asked[load][at % len(asked[load])])
            taken.append(time.perf_counter() - began)
        print(json.dumps(taken), flush=True)


def pipeline(folder: str, port: str) -> None:
    """What a user would pick: transformers' pipeline in a web server."""
    import torch
    import transformers
    import uvicorn
    from fastapi import FastAPI

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ask: Any = transformers.pipeline("image-classification", model=folder, device="cpu")
    application = FastAPI()

    @application.post(PATH)
    def predict(body: dict[str, Any]) -> Any:
        pictures = [Image.open(io.BytesIO(base64.b64decode(one["data"]))) for one in body["instances"]]
        return {"predictions": ask(pictures, top_k=5, batch_size=len(pictures))}

    uvicorn.run(application, host="127.0.0.1", port=int(port), log_level="warning")


@contextlib.contextmanager
def pinned(cores: int) -> Iterator[None]:
    """What is started meanwhile has so many cores: the first ones."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(own)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


class Bare:
    """The limit's process, asked again and again."""

    def __init__(self, model: str, cores: int) -> None:
        command = [sys.executable, str(Path(__file__)), "bare", str(checkpoint(model))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
        with pinned(cores):
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )

    def ask(self, load: str, first: int, count: int) -> list[float]:
        """The seconds that each of these requests takes it."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{load} {first} {count}\n")
        process.stdin.flush()
        return list(json.loads(process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.asynccontextmanager
async def serving(model: str, subject: Subject, cores: int) -> AsyncIterator[str]:
    """The subject's server on so many cores; its address, when it is loaded. Several may be opened at once."""
    with TemporaryDirectory(prefix="serving-", dir="/tmp") as scratch:
        folder = Path(scratch)
        if subject.runtime is None:
            port = free_port()
            command: list[str | Path] = [sys.executable, Path(__file__), "pipeline", checkpoint(model), str(port)]
            one = Child("pipeline", command, state_dir=folder, log=LOG, env=_threads(cores))
            try:
                await _start(one, cores)
                yield f"http://127.0.0.1:{port}{PATH}"
            finally:
                await one.stop()
        else:
            server = server_for(subject.runtime, version(model, subject), folder, cores)
            async with started(subject.runtime, server, folder, cores) as port:
                yield f"http://127.0.0.1:{port}{PATH}"


def server_for(runtime: str, made: Path, folder: Path, cores: int) -> Any:
    """The runtime's server for the version in `made`, yet to be started; `folder` is its own."""
    kind = {"torchserve": TorchServe, "kserve": KServeServer}[runtime]
    return kind(Container(runtime, folder, made, folder / "own", folder / "s", LOG, _threads(cores)))


@contextlib.asynccontextmanager
async def started(runtime: str, server: Any, folder: Path, cores: int | None = None) -> AsyncIterator[int]:
    """Starts it; the port that its clients ask, when it is loaded."""
    front = None
    try:
        await _start(server.child, cores)
        async with aiohttp.ClientSession() as http:
            while not await server.loaded(http):
                if not server.child.running:
                    raise SystemExit(f"{runtime}: {server.child.tail()}")
                await asyncio.sleep(0.05)
        port = server.inference_port
        if runtime == "torchserve":
            port = free_port()
            front = Child("front", _front(folder, port), state_dir=folder, log=LOG)
            await _start(front, cores)
            await _listens(port, front)
        yield port
    finally:
        for one in (front, server):
            if one:
                await one.stop()


async def _start(child: Child, cores: int | None) -> None:
    # What is pinned is this thread, for a moment.
    async with _STARTING:
        with pinned(cores) if cores else contextlib.nullcontext():
            await child.start()


async def _listens(port: int, child: Child) -> None:
    while child.running:
        with contextlib.suppress(OSError):
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            return
        await asyncio.sleep(0.05)
    raise SystemExit(f"{child.name}: {child.tail()}")


def _threads(cores: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(cores)}


def _front(folder: Path, port: int) -> list[str | Path]:
    """The image's own front before a TorchServe that runs already: it is told of one address, as on a cluster."""
    said = (folder / "own" / "config.properties").read_text()
    (address,) = re.findall(r"^inference_address=(.*)$", said, re.MULTILINE)
    config = folder / "front.properties"
    config.write_text(re.sub(r"(?m)^management_address=.*$", f"management_address={address}", said))
    program = PROJECT / "include" / "images" / "serving" / "front.py"
    return [sys.executable, program, "--config", config, "--port", str(port), "--", "sleep", "infinity"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        bare(*sys.argv[2:])
    else:
        pipeline(*sys.argv[2:])
