"""From S3 to the first answer: both runtimes, beside what the network and the disk need for the same bytes.

Part of serving.py, which keeps and writes its rows. A version lies in the sandbox's S3 server. It is downloaded by the
rules of KServe's storage initializer, the server is started on two cores, and the clock stops when a picture is
answered: there is no pod to be scheduled and no image to be pulled, and the server's own program and torch have been
read before, as on a node that has run one. Before each start the version's bytes are read

* from the same S3 server, into nothing: the network's own time;
* from disk, after the system was told to forget them: the disk's own time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from serving_subjects import MODELS, PATH, Subject, bodies, say, server_for, started, version

from model_release.build import runtimes
from sandbox.ports import Ports
from sandbox.s3 import ModelStore
from sandbox.storage import download

BUCKET = "models"
RUNS = 3
PIECE = 1 << 20


def rows(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Those of what serving.py keeps."""
    return {name: row for name, row in kept.items() if name.startswith("cold/")}


def left(kept: Mapping[str, Any], options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(name, model, runtime) of each row that is to be measured."""
    rows = [(f"cold/{model}/{runtime}", model, runtime) for model in MODELS for runtime in runtimes.NAMES]
    rows = [row for row in rows if not options.quick or row[1] == "tiny"]
    return [row for row in rows if row[0].startswith(options.only) and (options.again or row[0] not in kept)]


async def run(kept: Mapping[str, Any], keep: Callable[[str, Any], None], options: argparse.Namespace) -> None:
    """Measures what is left."""
    asked = left(kept, options)
    if not asked:
        return
    with TemporaryDirectory(prefix="cold-", dir="/tmp") as scratch:
        store = ModelStore(Path(scratch, "s3"), Ports(Path(scratch, "s3", "ports.json")))
        await store.start()
        try:
            await store.ensure_bucket(BUCKET)
            for name, model, runtime in asked:
                made = version(model, Subject(runtime))
                for file in sorted(path for path in made.rglob("*") if path.is_file()):
                    key = f"{name}/{file.relative_to(made).as_posix()}"
                    await asyncio.to_thread(store.client().upload_file, str(file), BUCKET, key)
            for name in {runtime: name for name, _, runtime in asked}.values():
                # Its program is read from disk: this start is no row's.
                await _once(store, name, Path(scratch))
            found: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in asked}
            for number in range(1 if options.quick else RUNS):
                # Forwards and backwards, so that neither runtime always comes second.
                for name in list(found)[:: 1 if number % 2 == 0 else -1]:
                    found[name].append(await _once(store, name, Path(scratch)))
        finally:
            await store.stop()
    for name, runs in found.items():
        row = {key: round(statistics.median(one[key] for one in runs), 2) for key in runs[0]}
        row["ratio"] = round(statistics.median(one["all"] / (one["network"] + one["disk"]) for one in runs), 1)
        keep(name, {**row, "runs": len(runs), "load_average": round(os.getloadavg()[0], 1)})
        say(f"{name}: {row['all']} s, of which network and disk alone explain {row['network']} and {row['disk']}")


async def _once(store: ModelStore, name: str, scratch: Path) -> dict[str, float]:
    """Seconds of each part; `megabytes` of the version."""
    _, _, runtime = name.split("/")
    client, folder = store.client(), scratch / "version"
    network, size = await asyncio.to_thread(_read_from_s3, client, name)
    began = time.perf_counter()
    await asyncio.to_thread(download, client, f"s3://{BUCKET}/{name}/", folder)
    fetched = time.perf_counter()
    async with contextlib.AsyncExitStack() as up:
        server = server_for(runtime, folder, scratch, cores=len(os.sched_getaffinity(0)))
        port = await up.enter_async_context(started(runtime, server, scratch))
        ready = time.perf_counter()
        async with aiohttp.ClientSession() as http:
            kind = {"Content-Type": "application/json"}
            async with http.post(f"http://127.0.0.1:{port}{PATH}", data=bodies("one")[0], headers=kind) as answer:
                answer.raise_for_status()
                await answer.read()
        ended = time.perf_counter()
    disk = await asyncio.to_thread(_read_from_disk, folder)
    parts = {"download": fetched - began, "start": ready - fetched, "answer": ended - ready}
    return {"all": ended - began, **parts, "network": network, "disk": disk, "megabytes": size / 1e6}


def _read_from_s3(client: Any, name: str) -> tuple[float, int]:
    """(seconds, bytes) of a plain read."""
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{name}/")["Contents"]]
    began, size = time.perf_counter(), 0
    for key in keys:
        for piece in client.get_object(Bucket=BUCKET, Key=key)["Body"].iter_chunks(PIECE):
            size += len(piece)
    return time.perf_counter() - began, size


def _read_from_disk(folder: Path) -> float:
    """Seconds of a plain read of what the system was asked to forget."""
    seconds = 0.0
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        with file.open("rb", buffering=0) as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            while opened.read(PIECE):
                pass
            seconds += time.perf_counter() - began
    return seconds


def table(kept: Mapping[str, Any]) -> str:
    """The ratio first."""
    if not kept:
        return ""
    columns = ("of network and disk", "all", "download", "until it is loaded", "first answer", "network", "disk", "MB")
    lines = [f"| seconds | {' | '.join(columns)} |", f"|---{'|---:' * len(columns)}|"]
    for name, row in kept.items():
        _, model, runtime = name.split("/")
        cells = [f"ViT-{model}, {runtime}", f"**{row['ratio']:.1f}**"]
        cells += [f"{row[key]}" for key in ("all", "download", "start", "answer", "network", "disk")]
        lines.append(f"| {' | '.join(cells)} | {row['megabytes']:.0f} |")
    runs = min(row["runs"] for row in kept.values())
    days = " and ".join(sorted({row["at"][:10] for row in kept.values()}))
    return "\n".join([*lines, f"\nMedians of {runs} starts each, on {days}."])
