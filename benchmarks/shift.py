"""Whether labels have shifted: what the judge promises of `max_shift`, measured on answers with a known truth.

    python benchmarks/shift.py                       # prints the tables: a quarter of an hour on one core
    python benchmarks/shift.py --write --only shift-delay-7   # one part, and into README.md

Seeds are fixed: the tables come out the same on any machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from pages import write

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "plugins")]

from model_release.judging.shift_simulate import Courses, courses, moved  # noqa: E402
from model_release.judging.simulate import interval  # noqa: E402
from model_release.judging.state import Floats  # noqa: E402

RELEASES = {2: 2000, 7: 2000, 100: 2000, 1000: 600}  # of a line, by labels: a thousand take a minute and a half
LOOKS = 200
SIDES = (20, 180)  # canary's and stable's answers in a window
LABELS = (2, 7, 100, 1000)
SHIFT = 0.1
BOUNDS = {7: 1.5, 100: 2.2, 1000: 2.8}  # times the bet that is told the label, and two windows


def usual(labels: int) -> Floats:
    """A few labels are frequent and most are rare (Zipf)."""
    ranks: Floats = 1 / np.arange(1, labels + 1)
    out: Floats = ranks / ranks.sum()
    return out


def steady(shares: Floats, windows: int = LOOKS) -> Floats:
    return np.broadcast_to(shares, (windows, len(shares))).copy()


def swinging(labels: int, windows: int = LOOKS) -> Floats:
    """The mix goes over to its reverse and back, twice, as between day and night."""
    night: Floats = (1 - np.cos(np.linspace(0, 4 * np.pi, windows)))[:, None] / 2
    out: Floats = (1 - night) * usual(labels) + night * usual(labels)[::-1]
    return out


def moved_label(labels: int) -> int:
    """One of the less frequent ones."""
    return labels // 3


def false_rollbacks(labels: int) -> str:
    """200 looks at canaries that are within the limit: exactly at it, which is the worst, and equal to stable."""
    label = moved_label(labels)
    even, night = steady(usual(labels)), swinging(labels)
    at_limit = moved(even, label, SHIFT)
    scenes: list[tuple[str, Floats, Floats, tuple[int, int], int]] = [
        ("as stable", even, even, (1, 1), 20_000),
        ("one label at the limit", at_limit, even, (1, 1), 20_000),
        ("one label at the limit, no past", at_limit, even, (1, 1), 0),
        ("at the limit, bursts of 10 on both sides", at_limit, even, (10, 10), 20_000),
        ("at the limit, bursts of 10 on the canary alone", at_limit, even, (10, 1), 20_000),
        ("as stable, bursts of 20 on stable alone", even, even, (1, 20), 20_000),
        ("at the limit, the mix swings on both sides", moved(night, label, SHIFT), night, (1, 1), 20_000),
    ]
    if labels == max(LABELS):
        scenes = scenes[1:2] + scenes[4:5] + scenes[6:]
    lines = [
        "| labels | the canary | releases | rolled back | 99 % interval (at most 1 %) |",
        "|---:|---|---:|---:|---:|",
    ]
    for seed, (name, canary, stable, bursts, past) in enumerate(scenes, start=500):
        found = _run(seed, canary, stable, bursts=bursts, past=past).rolled_back
        hits, releases = int((found > 0).sum()), len(found)
        low, high = interval(hits, releases)
        mark = "" if hits / releases <= 0.01 else " **missed**"
        lines.append(f"| {labels} | {name} | {releases} | {hits / releases:.2%} | {low:.2%} – {high:.2%}{mark} |")
    return "\n".join(lines)


def delay(labels: int) -> str:
    """Beside the bet that is told which label it is, on the same counts."""
    lines = [
        "| labels | one label's share | windows | told the label | factor | bound |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    label = moved_label(labels)
    for seed, by in enumerate((0.2, 0.3, 0.5, 0.8), start=600):
        if usual(labels)[label] + by > 1 or (labels == max(LABELS) and by not in (0.2, 0.5)):
            continue
        even = steady(usual(labels), 400 if by == 0.2 else LOOKS)
        found = _run(seed, moved(even, label, by), even, told=label)
        windows, told = _mean(found.rolled_back, len(even)), _mean(found.alone, len(even))
        bound = ""
        if by == 0.2 and labels in BOUNDS:
            most = BOUNDS[labels] * told + 2
            bound = f"{most:.0f}" + ("" if windows <= most else " **missed**")
        lines.append(
            f"| {labels} | {usual(labels)[label]:.1%} → {usual(labels)[label] + by:.1%} | {windows:.1f} | {told:.1f} "
            f"| {windows / told:.2f} | {bound} |"
        )
    return "\n".join(lines)


def promotion(labels: int) -> str:
    """Canaries that answer as stable does: how many answers it takes. And those at twice the limit: how often promoted,
    with no roll-back looked at."""
    lines = [
        "| labels | bursts | answers until half are promoted | promoted at twice the limit | 99 % interval |",
        "|---:|---:|---:|---:|---:|",
    ]
    even, label = steady(usual(labels), 400 if labels == max(LABELS) else LOOKS), moved_label(labels)
    for seed, burst in enumerate((1, 3, 10), start=700):
        if labels == max(LABELS) and burst > 1:
            continue
        good = _run(seed, even, even, bursts=(burst, burst), releases=100).promoted
        bad = _run(seed, moved(even, label, 2 * SHIFT), even, bursts=(burst, burst)).promoted
        hits, releases = int((bad > 0).sum()), len(bad)
        low, high = interval(hits, releases)
        half = np.median(np.where(good > 0, good, np.inf)) * SIDES[0]
        waits = f"{half:.0f}" if np.isfinite(half) else f"over {len(even) * SIDES[0]}"
        mark = "" if hits / releases <= 0.05 else " **missed**"
        lines.append(f"| {labels} | {burst} | {waits} | {hits / releases:.1%} | {low:.1%} – {high:.1%}{mark} |")
    return "\n".join(lines)


def _run(seed: int, canary: Floats, stable: Floats, *, releases: int | None = None, **more: object) -> Courses:
    releases = releases or RELEASES[stable.shape[1]]
    return courses(seed, canary, stable, SIDES, max_shift=SHIFT, releases=releases, **more)  # type: ignore[arg-type]


def _mean(windows: np.ndarray, longest: int) -> float:
    return float(np.where(windows > 0, windows, longest + 1).mean())


SECTIONS: dict[str, Callable[[], str]] = {
    f"shift-{name}-{labels}": partial(table, labels)
    for name, table in (("false", false_rollbacks), ("delay", delay), ("promotion", promotion))
    for labels in LABELS
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into README.md")
    parser.add_argument("--only", metavar="SECTION", nargs="+", help=f"only these: {', '.join(SECTIONS)}")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - SECTIONS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in options.only or SECTIONS:
        table = SECTIONS[name]()
        print(f"{name}\n\n{table}\n", flush=True)
        if options.write:
            write({name: table})


if __name__ == "__main__":
    main()
