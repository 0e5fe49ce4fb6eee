"""Releases one after another, each with a fault at random, and a watcher outside of Airflow: is a canary ever open that
nobody looks at for longer than its lease lasts?

    python benchmarks/soak.py                 # 30 releases: about an hour; `make soak`
    python benchmarks/soak.py --releases 5    # as many more as there are not yet
    python benchmarks/soak.py --seed 7        # the same faults in the same order
    python benchmarks/soak.py --write         # the table of what was kept into this folder's README, and run nothing

The watcher reads the gateway's own weights five times a second, and from the lease who looked last (brake_watch.py). Of
each release is kept, in soak.json: the fault, how it ended, and for how long a canary had users while nobody looked, at
the longest. Ends with 1 when that was longer than the lease's duration and the ten seconds that a guard may take.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brake_watch import Watched, stack
from faults.models import ASKED, BAD, BAKE, DAG
from faults.releases import Release
from pages import write

from sandbox.process import processes

KEPT = Path(__file__).with_name("soak.json")
MOST = 70.0  # seconds: a lease's duration, and ten
Fault = Callable[[Watched, Release, float], None]


def _for_a_while(harm: Callable[[Watched], contextlib.AbstractContextManager[Any]]) -> Fault:
    def fault(watched: Watched, _: Release, seconds: float) -> None:
        with harm(watched):
            time.sleep(seconds)

    return fault


def _part_stopped(part: str) -> Callable[[Watched], contextlib.AbstractContextManager[Any]]:
    @contextlib.contextmanager
    def stopped(watched: Watched) -> Any:
        watched.scene.live.sandbox("stop", part)
        try:
            yield
        finally:
            watched.scene.live.sandbox("start", part)

    return stopped


def _paused(watched: Watched, one: Release, seconds: float) -> None:
    with watched.pause_of(one.dag):
        time.sleep(seconds)


def _canary_dies(watched: Watched, _: Release, seconds: float) -> None:
    claim = watched.scene.claim
    if claim is None or claim.canary is None:
        return
    for victim in processes(watched.scene.live.state, f"models/{claim.canary}"):
        with contextlib.suppress(Exception):
            victim.kill()
    if seconds > 30:
        watched.scene.pods_die(claim.canary)
        time.sleep(seconds)
        watched.scene.api_mended()


def _api_fails(watched: Watched, _: Release, seconds: float) -> None:
    with watched.scene.api_down(min(seconds, 40)):
        pass


FAULTS: dict[str, Fault] = {
    "nothing": lambda *_: None,
    "DAG paused": _paused,
    "executor stopped": _for_a_while(lambda watched: watched.still("LocalExecutor")),
    "scheduler stopped": _for_a_while(lambda watched: watched.still("airflow scheduler")),
    "DAG processor stopped": _for_a_while(lambda watched: watched.still("airflow dag-processor")),
    "triggerer stands still": _for_a_while(lambda watched: watched.still("triggerer")),
    "triggerer killed": _for_a_while(lambda watched: watched.no_triggerer()),
    "triggerer and API server killed": _for_a_while(lambda watched: watched.no_triggerer_nor_api()),
    "database stopped": _for_a_while(lambda watched: watched.no_database()),
    "Prometheus stopped": _for_a_while(_part_stopped("prometheus")),
    "guard stopped": _for_a_while(_part_stopped("guard")),
    "Kubernetes API away": _api_fails,
    "canary killed": _canary_dies,
    "deferred task deleted": lambda _watched, one, _seconds: one.delete("canary"),
    "task marked failed": lambda _watched, one, _seconds: one.mark("canary", "failed"),
    "run marked failed": lambda _watched, one, _seconds: one.mark_run("failed"),
}


def soak(releases: int, seed: int) -> list[dict[str, Any]]:
    """Runs what is missing of so many releases; what was kept is not run again."""
    kept = read()
    if len(kept) >= releases:
        return kept
    with stack() as watched:
        while len(kept) < releases:
            dice = random.Random(f"{seed}/{len(kept)}")
            kept.append(one_release(watched, dice, number=len(kept) + 1))
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            print(" | ".join(f"{value}" for value in kept[-1].values()), flush=True)
    return kept


def one_release(watched: Watched, dice: random.Random, *, number: int) -> dict[str, Any]:
    """One release with one fault, until its service is at rest again."""
    name, dag = dice.choice(sorted(FAULTS)), dice.choice([DAG, ASKED, BAD, BAKE])
    wait, seconds = dice.uniform(0, 8), dice.uniform(5, 120)
    began = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    watched.watcher.longest = 0.0
    one = watched.scene.release(watched.scene.bad if dag == BAD else None, dag=dag)
    ended = "rest"
    try:
        with contextlib.suppress(AssertionError):
            one.watching()  # a bad one may be closed before anybody looks
        time.sleep(wait)
        with contextlib.suppress(Exception):
            FAULTS[name](watched, one, seconds)
        if dag == ASKED or name in ("deferred task deleted", "guard stopped"):
            time.sleep(90)  # long enough for a canary that nobody looks at to be closed
            one.mark_run("failed")
        watched.finish(one)
        ended = one.sentence()
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
        watched.scene.end_all()
        watched.scene.users()
    return {
        "release": number,
        "began": began,
        "dag": dag,
        "fault": name,
        "seconds": round(seconds),
        "longest": round(watched.watcher.longest, 1),
        "ended": ended[:200],
    }


def table(kept: list[dict[str, Any]]) -> str:
    """A line for each fault: how its releases ended, and the longest time in which nobody looked. What never came to
    rest is `other`."""
    lines = ["| fault | releases | promoted | rolled back | failed | other | open and looked at by nobody, at most |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for fault in sorted({one["fault"] for one in kept}):
        rows = [one for one in kept if one["fault"] == fault]
        endings = Counter(one["ended"].partition(":")[0] for one in rows)
        counts = [str(endings.pop(ending, 0)) for ending in ("promoted", "rolled_back", "failed")]
        counts.append(str(endings.total()))
        lines.append(f"| {fault} | {len(rows)} | {' | '.join(counts)} | {max(one['longest'] for one in rows):.1f} s |")
    return "\n".join(lines)


def read() -> list[dict[str, Any]]:
    return list(json.loads(KEPT.read_text(encoding="utf-8"))) if KEPT.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--releases", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the table into README.md, and run nothing")
    options = parser.parse_args()
    kept = read() if options.write else soak(options.releases, options.seed)
    if options.write:
        write({"soak": table(kept)})
    longest = max((one["longest"] for one in kept), default=0.0)
    print(f"{len(kept)} releases; open and looked at by nobody for {longest:.1f} s at the longest ({MOST:.0f} may be)")
    return 1 if longest > MOST else 0


if __name__ == "__main__":
    sys.exit(main())
