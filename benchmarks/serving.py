"""How fast a version is served: both runtimes, in each precision, beside the limit and beside what is usual.

    python benchmarks/serving.py            # what is not there yet; ends after 25 minutes, and goes on when run again
    python benchmarks/serving.py --all      # batching too, TorchServe in every precision, and all latencies: for hours
    python benchmarks/serving.py --prepare  # exports and packs what will be served, and measures nothing
    python benchmarks/serving.py --quick    # ViT-tiny, one core, seconds a row: whether it works
    python benchmarks/serving.py --only base/1 --again   # rows whose name begins so, measured anew
    python benchmarks/serving.py --write    # the table of what was measured into this folder's README

ViT-tiny and ViT-base with random weights: the work is that of trained ones. On one core the server has that core and
the clients the other; on two they share both. Two loads: `one`, a JPEG of 640x480 in each request (V1), and `mixed`,
one to eight pictures of several sizes and formats, two on average.

* `bare`, the limit: one process that reads pictures with Pillow and asks transformers' model (eager, float32): no
  server, no base64. Its latencies are those of a queue before it (Lindley).
* `pipeline`: transformers' image-classification pipeline behind FastAPI and uvicorn.
* `torchserve` (our front, TorchServe, the handler) and `kserve` (KServe's server, the model class), as a release makes
  and starts them; `batching` is {max: 8, within: 5ms}.

The servers of a model and a number of cores are all up, and each works while the others wait. Rounds of a few seconds:
the bare loop, each server in turn, the bare loop again, all with the same requests; every second round backwards. So a
round gives one ratio for each server, of work that is the same, within half a minute; what else a machine does for
longer than that, it does to both sides. Rounds go on until the 95 % interval (Student's t, of the ratios' logarithms)
of every ratio is within 5 % of it, or the time of a load is up: the table has the interval that was reached.

A server's time for a round is from the first request sent to the last one answered, with four clients (eight with
batching), each with its next request as soon as it has its answer: filling and emptying the queue counts against it.

Then, for the servers in float32, requests come at random (Poisson, the same draw for each) at 70 % of what the server
answered, and latencies are counted from when a request was due. p99 of fewer than 100 requests is not given.

Each row is kept as soon as it is measured (`serving.json`, beside this). From S3 to the first answer: cold_start.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import cold_start
from pages import write
from scipy import stats
from serving_subjects import CACHE, MODELS, SUBJECTS, Bare, Subject, bodies, report, say, serving, version

HERE = Path(__file__).resolve().parent
JSON = {"Content-Type": "application/json"}
LOADS = ("one", "mixed")
CLIENTS, CLIENTS_OF_A_BATCH = 4, 8
SHARE = 0.7
#: Requests of which a p99 is given.
ENOUGH = 100


@dataclass(frozen=True)
class Pace:
    """Seconds: of the bare loop in a round, of all rounds of a load, and of 70 %, which goes on until there were
    `least` requests, or for `longest`. `within` is how near the interval's ends are to the ratio when that is enough.
    """

    round: float = 2
    rounds: float = 75
    fewest: int = 4
    within: float = 0.05
    least: int = 200
    steady: float = 10
    longest: float = 35


QUICK = Pace(round=0.5, rounds=1, fewest=2, least=1, steady=3, longest=3)


class Over(Exception):
    """The time of this run is up; what was measured is kept."""


@dataclass
class Rounds:
    """What a server and the bare loop took in each round, seconds; both had the same requests."""

    taken: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    asked: int = 0
    failed: int = 0

    @property
    def rate(self) -> float:
        """Requests answered a second."""
        return (self.asked - self.failed) / sum(self.taken)


# The two measurements


async def warmed_up(address: str) -> None:
    """Waits for the first answer, and asks for each load a few times."""
    async with aiohttp.ClientSession() as http:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.post(address, data=bodies("mixed")[0], headers=JSON) as answer:
                    if answer.status == 200:
                        break
            await asyncio.sleep(0.2)
    for load in LOADS:
        await full(address, bodies(load)[:4], CLIENTS)


async def full(address: str, asked: Sequence[bytes], clients: int) -> tuple[float, int]:
    """(seconds until all of these were answered, how many not with 200), by clients who do not wait."""
    waiting, failed = iter(asked), 0

    async def client(http: aiohttp.ClientSession) -> None:
        nonlocal failed
        for data in waiting:
            async with http.post(address, data=data, headers=JSON) as answer:
                await answer.read()
                failed += answer.status != 200

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        return time.perf_counter() - began, failed


async def rounds(
    limit: Bare, servers: Mapping[Subject, str], load: str, pace: Pace
) -> tuple[dict[Subject, Rounds], list[float]]:
    """For each server its rounds, and what each request took the bare loop."""
    body = bodies(load)
    alone = limit.ask(load, 0, 6)
    count = max(6, round(pace.round / statistics.mean(alone)))
    found, single = {subject: Rounds() for subject in servers}, []
    began, number, done = time.perf_counter(), 0, False
    while not done:
        first = number * count
        asked = [body[at % len(body)] for at in range(first, first + count)]
        before = limit.ask(load, first, count)
        for subject in list(servers)[:: 1 if number % 2 == 0 else -1]:
            clients = CLIENTS_OF_A_BATCH if subject.batching else CLIENTS
            seconds, failed = await full(servers[subject], asked, clients)
            found[subject].taken.append(seconds)
            found[subject].asked += count
            found[subject].failed += failed
        after = limit.ask(load, first, count)
        for one in found.values():
            one.alone.append((sum(before) + sum(after)) / 2)
        single += before + after
        intervals = [interval(one.alone, one.taken) for one in found.values()]
        wide = 1 + pace.within
        narrow = all(ratio / wide <= low and high <= ratio * wide for ratio, low, high in intervals)
        number += 1
        done = number >= pace.fewest and (narrow or time.perf_counter() - began > pace.rounds)
    return found, single


async def steady(address: str, body: list[bytes], rate: float, pace: Pace) -> tuple[list[float], int]:
    """(seconds of each request, from when it was due; how many were not answered with 200) at `rate` a second."""
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


def interval(upper: Sequence[float], lower: Sequence[float]) -> tuple[float, float, float]:
    """(the ratio of both, and the ends of its 95 % interval), from pairs: the geometric mean of their ratios."""
    logs = [math.log(one / other) for one, other in zip(upper, lower, strict=True)]
    if len(logs) < 2:
        return math.exp(logs[0]), 0.0, math.inf
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.mean(logs)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def queued(taken: list[float], count: int = 2000) -> list[float]:
    """What requests would wait and take that came to the bare loop at 70 % of what it can (Lindley's recursion)."""
    draw, wait, found = random.Random(1), 0.0, []
    gap = statistics.mean(taken) / SHARE
    for _ in range(count):
        own = draw.choice(taken)
        found.append(wait + own)
        wait = max(0.0, wait + own - draw.expovariate(1 / gap))
    return found


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds; p99 where there are enough."""
    ordered = sorted(seconds)
    asked = [at for at in (50, 99) if len(ordered) >= (ENOUGH if at == 99 else 1)]
    return {f"p{at}_ms": round(1000 * ordered[min(len(ordered) - 1, at * len(ordered) // 100)], 1) for at in asked}


# The run


def cells(kept: Mapping[str, Any], options: argparse.Namespace) -> list[tuple[str, int, dict[str, list[Subject]]]]:
    """(model, cores, the servers of each load that are to be measured), in the order of the table. The pipeline goes
    along with every other, which is compared with it."""
    left = []
    for model, cores in itertools.product(MODELS, (1, 2)):
        if options.quick and (model, cores) != ("tiny", 1):
            continue
        loads: dict[str, list[Subject]] = {}
        for load in LOADS:
            names = {name_of(model, cores, one, load): one for one in SUBJECTS if one.usual or options.all}
            asked = {row: one for row, one in names.items() if row.startswith(options.only)}
            new = [one for row, one in asked.items() if options.again or not is_whole(kept.get(row), one, options.all)]
            if new:
                loads[load] = list(dict.fromkeys([SUBJECTS[0], *new]))
        if loads:
            left.append((model, cores, loads))
    return left


def prepare(kept: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Exports and packs what is to be served and is not there yet."""
    served = {
        (model, one)
        for model, _, loads in cells(kept, options)
        for one in itertools.chain(*loads.values())
        if one.runtime
    }
    started = {(model, Subject(runtime)) for _, model, runtime in cold_start.left(kept, options)}
    for model, subject in sorted(served | started, key=str):
        version(model, subject)


def is_whole(row: Mapping[str, Any] | None, subject: Subject, every: bool) -> bool:
    """Whether all was measured of it."""
    return row is not None and ("at_70" in row or not has_latency(subject, every))


def has_latency(subject: Subject, every: bool) -> bool:
    """Whether its latency is measured, too; `every` one's is if so asked for."""
    return every or (subject.precision == "float32" and not subject.batching)


def name_of(model: str, cores: int, subject: Subject, load: str) -> str:
    """What a row is called."""
    return f"{model}/{cores}/{subject.name}/{load}"


async def run(file: Path, pace: Pace, options: argparse.Namespace) -> None:
    """Measures what is left. Raises `Over` where the time is up before."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    ends = time.monotonic() + 60 * options.minutes

    def keep(name: str, row: Mapping[str, Any]) -> None:
        kept[name] = {**row, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept, indent=1) + "\n")

    def in_time() -> None:
        if time.monotonic() > ends:
            raise Over

    await cold_start.run(kept, keep, options)
    for model, cores, loads in cells(kept, options):
        in_time()
        every = list(dict.fromkeys(one for servers in loads.values() for one in servers))
        say(f"ViT-{model}, cores: {cores}: starting {', '.join(one.name for one in every)}")
        async with contextlib.AsyncExitStack() as up:
            limit = up.enter_context(contextlib.closing(Bare(model, cores)))
            opened = await asyncio.gather(*(up.enter_async_context(serving(model, one, cores)) for one in every))
            servers = dict(zip(every, opened, strict=True))
            for address in opened:
                await warmed_up(address)
            # The clients have the other core where the servers have one.
            up.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[cores:] or os.sched_getaffinity(0))
            for load, asked in loads.items():
                in_time()
                found, single = await rounds(limit, {one: servers[one] for one in asked}, load, pace)
                rows = {one: row_of(model, one, found[one], found[SUBJECTS[0]], single) for one in asked}
                for one, row in rows.items():
                    keep(name_of(model, cores, one, load), row)
                    say(f"{name_of(model, cores, one, load)}: {row['ratio']} of the bare loop {row['interval']}")
                for one in asked:
                    if has_latency(one, options.all):
                        in_time()
                        taken, failed = await steady(servers[one], bodies(load), SHARE * found[one].rate, pace)
                        row = {**rows[one], **quantiles(taken), "at_70": len(taken), "failed_at_70": failed}
                        keep(name_of(model, cores, one, load), row)


def row_of(model: str, subject: Subject, own: Rounds, pipeline: Rounds, single: list[float]) -> dict[str, Any]:
    """What is kept of a server's rounds; ratios above 1 are faster than what they are of."""
    of_bare, of_pipeline = interval(own.alone, own.taken), interval(pipeline.taken, own.taken)
    row = {
        "requests_a_second": round(own.rate, 2),
        "ratio": round(of_bare[0], 3),
        "interval": [round(end, 3) for end in of_bare[1:]],
        "of_pipeline": round(of_pipeline[0], 3),
        "rounds": len(own.taken),
        "asked": own.asked,
        "failed": own.failed,
        "bare": {"requests_a_second": round(1 / statistics.mean(single), 2), **quantiles(queued(single))},
        "load_average": round(os.getloadavg()[0], 1),
    }
    if subject.runtime:
        about = report(model, subject)
        row |= {"artifact": about["artifact"], "beside_float32": about["parity"].get("beside_float32")}
    return row


def table(kept: Mapping[str, Any]) -> str:
    """Ratios first: the figures themselves are this machine's."""
    lines = []
    columns = ("of the bare loop", "95 %", "of the pipeline", "requests/s", "p50 ms (of bare)", "p99 ms (of bare)")
    for model, cores, load in itertools.product(MODELS, (1, 2), LOADS):
        found = {one.name: kept.get(name_of(model, cores, one, load)) for one in SUBJECTS}
        shown = {name: row for name, row in found.items() if row}
        if not shown:
            continue
        lines += [
            f"\nViT-{model}, cores: {cores}, load: {load}\n",
            f"| | {' | '.join(columns)} | other labels |",
            f"|---{'|---:' * (len(columns) + 1)}|",
        ]
        for name, row in shown.items():
            beside, failed = row.get("beside_float32"), row["failed"] + row.get("failed_at_70", 0)
            low, high = row["interval"]
            cells = [f"{name} ({failed} failed)" if failed else name, f"**{row['ratio']:.2f}**"]
            cells += [f"{low:.2f} to {high:.2f}, {row['rounds']} rounds", f"{row['of_pipeline']:.2f}"]
            cells.append(str(row["requests_a_second"]))
            cells += [
                f"{row[at]} ({row[at] / row['bare'][at]:.2f})" if at in row else "" for at in ("p50_ms", "p99_ms")
            ]
            cells.append(f"{beside['labels_changed']:.0%}" if beside else "")
            lines.append(f"| {' | '.join(cells)} |")
    if kept:
        loads = [row["load_average"] for row in kept.values()]
        days = sorted({row["at"][:10] for row in kept.values()})
        lines.append(
            f"\nMeasured on {' and '.join(days)}; the machine's load (two cores, this run among it) was {min(loads)} "
            f"to {max(loads)}. serving.json has each row."
        )
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a look whether it works; its figures say nothing")
    parser.add_argument("--all", action="store_true", help="batching, every precision of both, and every latency")
    parser.add_argument("--prepare", action="store_true", help="make what will be served, and measure nothing")
    parser.add_argument("--minutes", type=float, default=25, help="what is left then is left for another run")
    parser.add_argument("--only", default="", help="rows whose name begins so, such as base/1/kserve")
    parser.add_argument("--again", action="store_true", help="also the rows that were measured")
    parser.add_argument("--write", action="store_true", help="write the table into README.md, and measure nothing")
    options = parser.parse_args()
    file = CACHE / "quick.json" if options.quick else HERE / "serving.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    if not options.write:
        prepare(kept, options)
    if not options.write and not options.prepare:
        try:
            asyncio.run(run(file, QUICK if options.quick else Pace(), options))
        except Over:
            say(f"{options.minutes:g} minutes are over; the same command goes on where this one ended")
    kept = json.loads(file.read_text()) if file.exists() else {}
    cold = cold_start.rows(kept)
    served, first = table({name: row for name, row in kept.items() if name not in cold}), cold_start.table(cold)
    print(f"{served}\n\n{first}")
    if options.write:
        write({"serving": served, "cold-start": first})


if __name__ == "__main__":
    main()
