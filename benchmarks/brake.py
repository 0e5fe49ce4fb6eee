"""How long users stay on a canary that should have none: seconds to 0 % at the gateway, with parts of Airflow broken.

    python benchmarks/brake.py                     # what is missing of every case's five runs: some two hours in all
    python benchmarks/brake.py --runs 1 idle dead  # of these cases, as far as they have no run yet
    python benchmarks/brake.py --fresh idle        # as if this case had never run
    python benchmarks/brake.py --write             # and the tables of all that was kept into README.md here

Each run is kept in brake.json as it ends, with the commit, the time and the load of the machine, so it may be done in
pieces; the tables say how many runs stand behind each line, and which failed. The harm is that of the fault matrix
(tests/faults).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brake_watch import Watched, stack
from pages import write

HERE = Path(__file__).resolve().parent
KEPT = HERE / "brake.json"
# What a look may cost, in seconds: windows are 2 s long. And for how long a lease stands.
LOOK, LEASE = 1.0, 60.0


@dataclass(frozen=True)
class Case:
    """One line of a table; `most` seconds at the most are what it must reach."""

    name: str
    what: str
    since: str
    most: float
    run: Callable[[Watched], float]


Run = dict[str, Any]  # seconds or trouble; commit, time, load
EVIDENCE, DEATH, LOOKED = "the last bad window's end", "its death", "the last look"


def _evidence(name: str, what: str, harm: Callable[[Watched], contextlib.AbstractContextManager[Any]]) -> Case:
    return Case(name, what, EVIDENCE, LOOK + 2, lambda watched: watched.by_evidence(harm(watched)))


def _guarded(name: str, what: str, harm: Callable[[Watched], contextlib.AbstractContextManager[Any]]) -> Case:
    return Case(name, what, LOOKED, LEASE + 10, lambda watched: watched.by_guard(harm(watched)))


def _death(moment: str, what: str, *, again: bool) -> Case:
    name, often = f"{moment}-{'again' if again else 'once'}", "again and again" if again else "once"
    return Case(name, f"{what}, {often}", DEATH, LOOK + 3, lambda watched: watched.by_death(moment, again=again))


BROKEN = (
    _evidence("idle", "nothing", lambda _: contextlib.nullcontext()),
    _evidence("queued", "200 other tasks queued", lambda watched: watched.queued()),
    _evidence("wedged", "executor wedged (its processes stopped)", lambda watched: watched.still("LocalExecutor")),
    _evidence("scheduler", "scheduler stopped", lambda watched: watched.still("airflow scheduler")),
    _evidence("processor", "DAG processor stopped", lambda watched: watched.still("airflow dag-processor")),
    _evidence("paused", "DAG paused", lambda watched: watched.paused()),
    _evidence("file", "model file removed", lambda watched: watched.no_model_file()),
    Case("deleted", "deferred task instance deleted", LOOKED, LEASE + 10, lambda watched: watched.by_guard_deleted()),
    _guarded("triggerer", "triggerer killed", lambda watched: watched.no_triggerer()),
    _guarded("api", "triggerer and API server killed", lambda watched: watched.no_triggerer_nor_api()),
    _guarded("database", "Airflow's database stopped", lambda watched: watched.no_database()),
)
DEAD = tuple(
    _death(moment, what, again=again)
    for moment, what in (
        ("opened", "as soon as it is opened"),
        ("watch", "in the middle of its watch"),
        ("asked", "while a person is asked"),
    )
    for again in (False, True)
)
CASES = (*BROKEN, *DEAD)


def measure(cases: tuple[Case, ...], runs: int, minutes: float) -> None:
    """Runs each case until it has so many good runs, one of each after the other; no new one begins after `minutes`."""
    end, commit = time.monotonic() + 60 * minutes, _commit()
    kept = read()
    if all(_good(kept, case) >= runs for case in cases):
        return
    with stack() as watched:
        for number in range(1, runs + 1):
            for case in cases:
                if _good(kept, case) >= number or time.monotonic() > end:
                    continue
                about: Run = {"time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "commit": commit}
                about["load"] = round(os.getloadavg()[0], 1)
                try:
                    about["seconds"] = round(case.run(watched), 2)
                except Exception as error:
                    about["trouble"] = f"{type(error).__name__}: {error}"[:500]
                    watched.scene.end_all()
                    watched.scene.users()
                print(f"{case.name}: {about.get('trouble') or about['seconds']}", flush=True)
                kept.setdefault(case.name, []).append(about)
                _keep(kept)


def _keep(kept: dict[str, list[Run]]) -> None:
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def read() -> dict[str, list[Run]]:
    """All runs that were kept, by case."""
    return dict(json.loads(KEPT.read_text(encoding="utf-8"))) if KEPT.exists() else {}


def _good(kept: dict[str, list[Run]], case: Case) -> int:
    return sum("seconds" in run for run in kept.get(case.name, []))


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def table(cases: tuple[Case, ...], kept: dict[str, list[Run]], title: str) -> str:
    """Markdown: a line for each case, also for one that was never run."""
    lines = [f"| {title} | seconds to 0 % from | at most | runs | median | worst |", "|---|---|---:|---:|---:|---:|"]
    for case in cases:
        runs = kept.get(case.name, [])
        seconds = [run["seconds"] for run in runs if "seconds" in run]
        failed = len(runs) - len(seconds)
        count = f"{len(seconds)}" + (f", {failed} failed" if failed else "")
        told = (f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("–", "–")
        lines.append(f"| {case.what} | {case.since} | {case.most:.0f} | {count} | {told[0]} | {told[1]} |")
    return "\n".join(lines)


def page(kept: dict[str, list[Run]]) -> str:
    """Both tables, and on what they were measured."""
    runs = [run for case in CASES for run in kept.get(case.name, [])]
    about = "Nothing was measured yet."
    if runs:
        loads, days = [run["load"] for run in runs], sorted({run["time"][:10] for run in runs})
        commits = ", ".join(sorted({run["commit"] for run in runs}))
        about = (
            f"Measured on {' and '.join(days)} at {commits}; the machine's load (two cores) before a run was "
            f"{min(loads)} to {max(loads)}. brake.json has each run."
        )
    broken, dead = table(BROKEN, kept, "what is broken"), table(DEAD, kept, "the canary is killed")
    return f"{about}\n\n{broken}\n\nA new pod of the stable version takes 40 s:\n\n{dead}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(case.name for case in CASES)}, broken or dead; all")
    parser.add_argument("--runs", type=int, default=5, help="good runs that each case shall have (5)")
    parser.add_argument("--minutes", type=float, default=600, help="begin no further run after so many (600)")
    parser.add_argument("--fresh", action="store_true", help="forget what was kept of these cases")
    parser.add_argument("--write", action="store_true", help="the tables into benchmarks/README.md")
    options = parser.parse_args()
    groups = {"broken": BROKEN, "dead": DEAD, **{case.name: (case,) for case in CASES}}
    if unknown := set(options.cases) - set(groups):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    cases = tuple(dict.fromkeys(case for name in options.cases for case in groups[name])) or CASES
    if options.fresh:
        names = {case.name for case in cases}
        KEPT.write_text(
            json.dumps({k: v for k, v in read().items() if k not in names}, indent=1) + "\n", encoding="utf-8"
        )
    measure(cases, options.runs, options.minutes)
    kept = read()
    print(page(kept))
    if options.write:
        write({"brake": page(kept)})
    missed = [case for case in cases for run in kept.get(case.name, []) if run.get("seconds", 1e9) > case.most]
    return 1 if missed or any(_good(kept, case) < options.runs for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
