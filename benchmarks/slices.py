"""Whether a slice of the traffic suffers: what the judge promises of `slices`, measured on a known truth.

    python benchmarks/slices.py                                # prints the tables: minutes on one core
    python benchmarks/slices.py --write --only slices-which    # one part, and into README.md

Seeds are fixed: the tables come out the same on any machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pages import write

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "plugins")]

from model_release.judging import Policy  # noqa: E402
from model_release.judging.simulate import interval, outcomes  # noqa: E402
from model_release.judging.slices_simulate import releases  # noqa: E402
from model_release.judging.state import Counts, Floats  # noqa: E402
from model_release.judging.verdict import PROMOTE, ROLL_BACK  # noqa: E402

RELEASES = 2000  # of a line, unless said
LOOKS = 200
EACH = (10.0, 30.0)  # the canary's and stable's requests in a window, of each slice
SLICES = (1, 5, 50)
BAD = 7  # the slice that suffers, of twenty


def policy(**metric: object) -> Policy:
    errors = {"name": "errors", "max_rate": 0.02, "slices": {"by": "country"}, **metric}
    return Policy.from_dict({"metrics": [errors], "indifference": 2, "deadline_windows": LOOKS})


def even(slices: int, each: tuple[float, float] = EACH) -> tuple[Floats, Floats]:
    return np.full(slices, each[0]), np.full(slices, each[1])


def few_busy(slices: int, each: tuple[float, float] = EACH) -> tuple[Floats, Floats]:
    """As many requests, most of them of a few slices (Zipf)."""
    ranks = 1 / np.arange(1, slices + 1)
    canary, stable = (side * slices * ranks / ranks.sum() for side in each)
    return canary, stable


def false_rollbacks(slices: int, number: int) -> str:
    """200 looks at canaries of which each slice is within the limit: as good as stable, and exactly at it, which is the
    worst. Promotions are not looked at."""
    beside = {"max_rate": None, "max_ratio": 1.5, "floor": 0.005}
    scenes: list[tuple[str, dict[str, Any], float, float, float]] = [
        ("as stable", {}, 0.01, 0.01, 1),
        ("every slice at `max_rate`", {}, 0.02, 0.005, 1),
        ("the same, failing in bursts of 5", {}, 0.02, 0.005, 5),
        ("every slice at 1.5 times stable", beside, 0.015, 0.01, 1),
        ("the same, both failing in bursts of 5", beside, 0.015, 0.01, 5),
    ]
    lines = [
        "| slices | the canary | releases | rolled back | 99 % interval (at most 1 %) |",
        "|---:|---|---:|---:|---:|",
    ]
    for seed, (name, limits, canary, stable, burst) in enumerate(scenes, start=800):
        shape = np.ones(slices)
        found = releases(
            policy(**limits),
            canary * shape,
            stable * shape,
            even(slices),
            seed=seed,
            windows=LOOKS,
            burst=burst,
            promoting=False,
            number=number,
        )
        hits = int((found.codes == ROLL_BACK).sum())
        low, high = interval(hits, number)
        mark = "" if hits / number <= 0.01 else " **missed**"
        lines.append(f"| {slices} | {name} | {number} | {hits / number:.2%} | {low:.2%} – {high:.2%}{mark} |")
    return "\n".join(lines)


def which(number: int) -> str:
    """One slice of twenty goes from 1 % to more, while the whole stays within the limit; promotions end a release."""
    scenes: list[tuple[str, float, tuple[Floats, Floats], float, bool]] = [
        ("9 %, slices alike", 0.09, even(20), 1, True),
        ("9 %, a few slices busy", 0.09, few_busy(20), 1, True),
        ("9 %, in bursts of 3", 0.09, even(20), 3, True),
        ("6 %, slices alike", 0.06, even(20), 1, False),
        ("4 %, slices alike", 0.04, even(20), 1, False),
    ]
    lines = [
        "| one slice fails | releases | it alone named | 99 % interval (at 9 %: 95 %) | others named | requests |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for seed, (name, rate, requests, burst, promised) in enumerate(scenes, start=820):
        canary = np.full(20, 0.01)
        canary[BAD] = rate
        found = releases(
            policy(), canary, np.full(20, 0.01), requests, seed=seed, windows=LOOKS, burst=burst, number=number
        )
        alone = found.named[:, BAD] & (found.named.sum(axis=1) == 1)
        hits, others = int(alone.sum()), int((found.named.sum(axis=1) > found.named[:, BAD]).sum())
        low, high = interval(hits, number)
        until = np.median(found.windows[alone]) * requests[0][BAD]
        mark = "" if hits / number >= 0.95 or not promised else " **missed**"
        lines.append(
            f"| {name} | {number} | {hits / number:.1%} | {low:.1%} – {high:.1%}{mark} | {others / number:.2%} "
            f"| {until:.0f} |"
        )
    return "\n".join(lines)


def promotion(number: int) -> str:
    """Canaries as good as stable (1 %): the canary's requests until half are promoted, and how many are."""
    lines = [
        "| slices | requests until half are promoted | the same without slices | promoted by the deadline |",
        "|---|---:|---:|---:|",
    ]
    scenes = [(f"{slices} alike", even(slices)) for slices in (*SLICES, 20)] + [("20, a few busy", few_busy(20))]
    for seed, (name, requests) in enumerate(scenes, start=840):
        shape = np.full(len(requests[0]), 0.01)
        found = releases(policy(), shape, shape, requests, seed=seed, windows=LOOKS, number=number)
        per_window = requests[0].sum()
        rng = np.random.default_rng(seed)
        n, m = (rng.poisson(side.sum(), (number, LOOKS)).astype(float) for side in requests)
        b, s = (rng.binomial(side.astype(int), 0.01).astype(float)[..., None] for side in (n, m))
        plain = outcomes(policy(slices=None), Counts(n, b, m, s))[1]
        lines.append(
            f"| {name} | {np.median(found.windows) * per_window:.0f} | {np.median(plain) * per_window:.0f} "
            f"| {(found.codes == PROMOTE).mean():.1%} |"
        )
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[int], str]] = {
    "slices-which": which,
    **{f"slices-false-{slices}": partial(false_rollbacks, slices) for slices in SLICES},
    "slices-promotion": promotion,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into README.md")
    parser.add_argument("--only", metavar="SECTION", nargs="+", help=f"only these: {', '.join(SECTIONS)}")
    parser.add_argument("--releases", type=int, default=RELEASES, help="of a line; fewer for a quick look")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - SECTIONS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in options.only or SECTIONS:
        table = SECTIONS[name](options.releases)
        print(f"{name}\n\n{table}\n", flush=True)
        if options.write:
            write({name: table})


if __name__ == "__main__":
    main()
