"""How fast a version is served: both runtimes, in each precision, beside the limit and beside what is usual.

    python benchmarks/serving.py            # every row that is not there yet; says how many are left, and goes on
    python benchmarks/serving.py --quick    # ViT-tiny, one core, seconds a row: whether it works
    python benchmarks/serving.py --only base/1 --again   # rows whose name begins so, measured anew
    python benchmarks/serving.py --write    # the table of what was measured into this folder's README

ViT-tiny and ViT-base with random weights: the work is that of trained ones. On one core the server has that core and
the clients the other; on two they share both. Two loads: `one`, a JPEG of 640x480 in each request (V1), and `mixed`,
one to eight pictures of several sizes and formats, two on average.

* `bare`, the limit: one process that reads pictures with Pillow and asks transformers' model (eager, float32): no
  server, no base64. It is measured right before and right after each row, and the row's ratio is to the mean of both:
  what else a shared machine does meanwhile, it does to both. Its latencies are those of a queue before it (Lindley).
* `pipeline`: transformers' image-classification pipeline behind FastAPI and uvicorn.
* `torchserve` (our front, TorchServe, the handler) and `kserve` (KServe's server, the model class), as a release makes
  and starts them; `batching` is {max: 8, within: 5ms}.

Requests a second: eight clients, each with its next request as soon as it has its answer. Then requests come at random
(Poisson) at 70 % of that, and latencies are counted from when a request was due. Each row is kept as soon as it is
measured (`serving.json`, beside this), so the run may be stopped and started again at any moment.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from pages import write
from serving_subjects import CACHE, MODELS, SUBJECTS, Bare, Subject, bodies, report, say, serving

HERE = Path(__file__).resolve().parent
JSON = {"Content-Type": "application/json"}
CLIENTS = 8
LOAD = 0.7


@dataclass(frozen=True)
class Pace:
    """Seconds: of the bare loop on each side, of full load, and of 70 % of it, which goes on until there were `least`
    requests, or for `longest`."""

    bare: float = 5
    full: float = 15
    steady: float = 30
    least: int = 200
    longest: float = 100


QUICK = Pace(bare=1, full=3, steady=3, least=1, longest=3)


# The two measurements


async def warmed_up(address: str) -> None:
    """Waits for the first answer, and lets the clients ask for two seconds."""
    body = bodies("mixed")
    async with aiohttp.ClientSession() as http:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.post(address, data=body[0], headers=JSON) as answer:
                    if answer.status == 200:
                        break
            await asyncio.sleep(0.2)
    await full(address, body, 2)


async def full(address: str, body: list[bytes], seconds: float) -> tuple[float, int]:
    """(requests a second that were answered, those that were not) with eight clients who do not wait."""
    number, answered, failed = itertools.count(), 0, 0
    began = time.perf_counter()

    async def client(http: aiohttp.ClientSession) -> None:
        nonlocal answered, failed
        while time.perf_counter() - began < seconds:
            async with http.post(address, data=body[next(number) % len(body)], headers=JSON) as answer:
                await answer.read()
                answered, failed = answered + (answer.status == 200), failed + (answer.status != 200)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as http:
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    return answered / (time.perf_counter() - began), failed


async def steady(address: str, body: list[bytes], rate: float, pace: Pace) -> tuple[list[float], int]:
    """(seconds of each request that was answered, from when it was due; those that were not) at `rate` a second."""
    draw, taken, failed = random.Random(1), [], 0

    async def one(http: aiohttp.ClientSession, due: float, data: bytes) -> None:
        nonlocal failed
        async with http.post(address, data=data, headers=JSON) as answer:
            await answer.read()
            taken.append(time.perf_counter() - due)
            failed += answer.status != 200

    under_way = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as http:
        began = due = time.perf_counter()
        ends = min(max(pace.steady, pace.least / rate), pace.longest)
        for data in itertools.cycle(body):
            due += draw.expovariate(rate)
            if due - began > ends:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            under_way.append(asyncio.create_task(one(http, due, data)))
        await asyncio.gather(*under_way)
    return taken, failed


def queued(taken: list[float], count: int = 2000) -> list[float]:
    """What requests would wait and take that came to the bare loop at 70 % of what it can (Lindley's recursion)."""
    draw, wait, found = random.Random(1), 0.0, []
    gap = statistics.mean(taken) / LOAD
    for _ in range(count):
        own = draw.choice(taken)
        found.append(wait + own)
        wait = max(0.0, wait + own - draw.expovariate(1 / gap))
    return found


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [float("nan")]
    return {f"p{at}_ms": round(1000 * ordered[min(len(ordered) - 1, at * len(ordered) // 100)], 1) for at in (50, 99)}


# The run


async def measured(limit: Bare, address: str, load: str, cores: int, pace: Pace) -> dict[str, Any]:
    """One row. The clients have the other core where the server has one."""
    every = sorted(os.sched_getaffinity(0))
    if len(every) > cores:
        os.sched_setaffinity(0, every[cores:])
    try:
        body = bodies(load)
        before = limit.ask(load, pace.bare)
        rate, failed = await full(address, body, pace.full)
        after = limit.ask(load, pace.bare)
        taken, late = await steady(address, body, LOAD * rate, pace)
    finally:
        os.sched_setaffinity(0, every)
    alone = 1 / statistics.mean(before + after)
    return {
        "requests_a_second": round(rate, 2),
        "ratio": round(rate / alone, 3),
        **quantiles(taken),
        "answered": len(taken),
        "failed": failed + late,
        "bare": {"requests_a_second": round(alone, 2), **quantiles(queued(before + after))},
        "bare_before_and_after": [round(1 / statistics.mean(side), 2) for side in (before, after)],
        "load_average": round(os.getloadavg()[0], 1),
    }


def rows_left(kept: dict[str, Any], quick: bool, only: str, again: bool) -> list[tuple[str, int, Subject, list[str]]]:
    """(model, cores, subject, loads) of each server that is to be started, in the order of the table."""
    left = []
    for model, cores in itertools.product(MODELS, (1, 2)):
        if quick and (model, cores) != ("tiny", 1):
            continue
        for subject in SUBJECTS:
            names = {f"{model}/{cores}/{subject.name}/{load}": load for load in ("one", "mixed")}
            loads = [load for row, load in names.items() if row.startswith(only) and (again or row not in kept)]
            if loads:
                left.append((model, cores, subject, loads))
    return left


async def run(file: Path, pace: Pace, options: argparse.Namespace) -> None:
    kept = json.loads(file.read_text()) if file.exists() else {}
    left = rows_left(kept, options.quick, options.only, options.again)
    for (model, cores), group in itertools.groupby(left, lambda row: row[:2]):
        limit = Bare(model, cores)
        try:
            for _, _, subject, loads in group:
                async with serving(model, subject, cores) as address:
                    await warmed_up(address)
                    for load in loads:
                        row = await measured(limit, address, load, cores, pace)
                        if subject.runtime:
                            about = report(model, subject)
                            row["artifact"] = about["artifact"]
                            row["beside_float32"] = about["parity"].get("beside_float32")
                        name = f"{model}/{cores}/{subject.name}/{load}"
                        kept[name] = {**row, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_text(json.dumps(kept, indent=1) + "\n")
                        say(f"{name}: {row['requests_a_second']} a second, {row['ratio']} of the bare loop")
        finally:
            limit.close()


def table(kept: dict[str, Any]) -> str:
    """Ratios first: the figures themselves are this machine's."""
    lines = []
    for model, cores, load in itertools.product(MODELS, (1, 2), ("one", "mixed")):
        found = {one.name: kept.get(f"{model}/{cores}/{one.name}/{load}") for one in SUBJECTS}
        shown = {name: row for name, row in found.items() if row}
        if not shown:
            continue
        usual = (found["pipeline"] or {}).get("ratio")
        columns = (
            "of the bare loop",
            "of the pipeline",
            "requests/s",
            "p50 ms (of bare)",
            "p99 ms (of bare)",
            "other labels",
        )
        lines += [
            f"\nViT-{model}, cores: {cores}, load: {load}\n",
            f"| | {' | '.join(columns)} |",
            f"|---{'|---:' * 6}|",
        ]
        for name, row in shown.items():
            beside, failed = row.get("beside_float32"), row["failed"]
            cells = [f"{name} ({failed} failed)" if failed else name, f"**{row['ratio']:.2f}**"]
            cells += [f"{row['ratio'] / usual:.2f}" if usual else "", f"{row['requests_a_second']}"]
            cells += [f"{row[at]} ({row[at] / row['bare'][at]:.2f})" for at in ("p50_ms", "p99_ms")]
            cells.append(f"{beside['labels_changed']:.0%}" if beside else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a look whether it works; its figures say nothing")
    parser.add_argument("--only", default="", help="rows whose name begins so, such as base/1/kserve")
    parser.add_argument("--again", action="store_true", help="also the rows that were measured")
    parser.add_argument("--write", action="store_true", help="write the table into README.md, and measure nothing")
    options = parser.parse_args()
    file = CACHE / "quick.json" if options.quick else HERE / "serving.json"
    if not options.write:
        asyncio.run(run(file, QUICK if options.quick else Pace(), options))
    found = table(json.loads(file.read_text()) if file.exists() else {})
    print(found)
    if options.write:
        write({"serving": found})


if __name__ == "__main__":
    main()
