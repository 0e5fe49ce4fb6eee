"""The judge beside the rules of Kayenta, Argo Rollouts and Flagger, on the same simulated traffic.

    python benchmarks/judge.py            # prints the tables
    python benchmarks/judge.py --write    # and writes them and the plot into this folder

Seeds are fixed: the tables come out the same on any machine, but for the last one, which is time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pages import write

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "plugins")]

import courses  # noqa: E402
import peers  # noqa: E402
import promises  # noqa: E402

from model_release.judging import Judge, Policy, Window, judge  # noqa: E402
from model_release.judging.simulate import bad_requests, interval, outcomes  # noqa: E402
from model_release.judging.state import Counts, Floats  # noqa: E402
from model_release.judging.verdict import PROMOTE, ROLL_BACK  # noqa: E402

RELEASES = 4000
WINDOWS = 180  # of 10 s: a deadline of 30 min
MINUTE = 6  # windows; the others' rules look once a minute, their own default or recommended interval
LIMIT = 0.02
POLICY = Policy.from_dict(
    {
        "metrics": [{"name": "errors", "max_rate": LIMIT, "max_ratio": 1.5, "floor": 0.005}],
        "min_requests": 100,
        "indifference": 2,
        "deadline_windows": WINDOWS,
    }
)
RULES = ("this judge", "Kayenta", "Argo Rollouts", "Flagger")


@dataclass(frozen=True)
class Scene:
    name: str
    stable: int
    canary: int
    stable_rate: Floats | float
    canary_rate: Floats | float
    burst: float = 1
    bad: bool = False


def swing(rate: float) -> Floats:
    """A rate that rises tenfold in the middle third, on both sides: somebody else's incident."""
    third = WINDOWS // 3
    return rate * np.repeat([1.0, 10.0, 1.0], third)


SCENES = (
    Scene("good: 0.3 % on both sides", 180, 20, 0.003, 0.003),
    Scene("good: 0.3 %, in bursts of 10", 180, 20, 0.003, 0.003, burst=10),
    Scene("good: 0.3 %, incident of 3 % on both sides", 180, 20, swing(0.003), swing(0.003)),
    Scene("good: 0.3 %, five times the traffic", 900, 100, 0.003, 0.003),
    Scene("good: 1 % on both sides, a tenth of the traffic", 18, 2, 0.01, 0.01),
    Scene("bad: 0.3 % → 5 %", 180, 20, 0.003, 0.05, bad=True),
    Scene("bad: 0.3 % → 5 %, in bursts of 10", 180, 20, 0.003, 0.05, burst=10, bad=True),
    Scene("bad: 0.3 % → 3 %", 180, 20, 0.003, 0.03, bad=True),
    Scene("bad: 0.3 % → 3 %, five times the traffic", 900, 100, 0.003, 0.03, bad=True),
    Scene("bad: 0.1 % → 1.5 %, below the 2 % line", 900, 100, 0.001, 0.015, bad=True),
)


def past(scene: Scene, seed: int) -> tuple[Floats, Floats]:
    """What stable did in the two hours before."""
    rng = np.random.default_rng(seed + 1000)
    requests = np.full((RELEASES, 720, 1), float(scene.canary + scene.stable))
    rate = np.full(requests.shape, float(np.min(scene.stable_rate)))
    return requests, bad_requests(rng, requests, rate, scene.burst, min(scene.canary, scene.stable))


def draw(scene: Scene, seed: int) -> Counts:
    rng = np.random.default_rng(seed)
    shape = (RELEASES, WINDOWS)
    n, m = np.full(shape, float(scene.canary)), np.full(shape, float(scene.stable))
    longest = min(scene.canary, scene.stable)
    b = bad_requests(rng, n, np.broadcast_to(scene.canary_rate, shape), scene.burst, longest)
    s = bad_requests(rng, m, np.broadcast_to(scene.stable_rate, shape), scene.burst, longest)
    return Counts(n, b[..., None], m, s[..., None])


def judged(counts: Counts, before: tuple[Floats, Floats]) -> dict[str, tuple[peers.Ints, peers.Ints]]:
    """Each rule's answers (+1 promoted, -1 rolled back, 0 undecided) and windows, on the same counts."""
    codes, windows = outcomes(POLICY, counts, before, final=True)
    ours = np.where(codes == PROMOTE, 1, np.where(codes == ROLL_BACK, -1, 0))
    x = by_minute(counts.canary_bad[..., 0]) / by_minute(counts.canary_requests)
    y = by_minute(counts.stable_bad[..., 0]) / by_minute(counts.stable_requests)
    others = {
        "Kayenta": peers.kayenta(x, y, looks=list(range(5, WINDOWS // MINUTE + 1, 5))),
        "Argo Rollouts": peers.argo(x, limit=LIMIT, failure_limit=3),
        "Flagger": peers.flagger(x, limit=LIMIT, threshold=5, steps=10),
    }
    return {"this judge": (ours, windows)} | {k: (said, looks * MINUTE) for k, (said, looks) in others.items()}


def by_minute(counts: Floats) -> Floats:
    out: Floats = counts.reshape(len(counts), -1, MINUTE).sum(axis=2)
    return out


@dataclass(frozen=True)
class Row:
    scene: Scene
    rule: str
    wrong: float
    low: float
    high: float
    undecided: float
    windows: float
    requests: float


def compare() -> list[Row]:
    rows = []
    for seed, scene in enumerate(SCENES, start=100):
        for rule, (said, windows) in judged(draw(scene, seed), past(scene, seed)).items():
            wrong = int((said == (peers.PROMOTED if scene.bad else peers.ROLLED_BACK)).sum())
            low, high = interval(wrong, RELEASES)
            mean = float(windows.mean())
            undecided = float((said == 0).mean())
            rows.append(Row(scene, rule, wrong / RELEASES, low, high, undecided, mean, mean * scene.canary))
    return rows


def comparison_table(rows: list[Row]) -> str:
    lines = [
        "| traffic (stable/canary requests a window) | rule | wrong | 99 % interval | undecided "
        "| windows of 10 s | canary requests |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        first = row.rule == RULES[0]
        scene = f"**{row.scene.name}** ({row.scene.stable}/{row.scene.canary})" if first else ""
        wrong = f"{'missed' if row.scene.bad else 'rolled back'} {row.wrong:.1%}"
        lines.append(
            f"| {scene} | {row.rule} | {wrong} | {row.low:.1%} – {row.high:.1%} | {row.undecided:.1%} "
            f"| {row.windows:.1f} | {row.requests:.0f} |"
        )
    return "\n".join(lines)


def summary_table(rows: list[Row]) -> str:
    """One line for each scene: wrong decisions, and in brackets the minutes to decide, by rule."""
    lines = [f"| traffic | {' | '.join(RULES)} |", f"|---|{'---:|' * len(RULES)}"]
    for scene in SCENES:
        cells = [
            f"{row.wrong:.1%} ({row.windows / MINUTE:.0f} min)"
            + (f", {row.undecided:.0%} open" if row.undecided else "")
            for row in rows
            if row.scene is scene
        ]
        wrong = "missed" if scene.bad else "rolled back"
        lines.append(f"| {scene.name} ({scene.stable}/{scene.canary} a window): {wrong} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_table() -> str:
    """Beside the sequential test that knows both true rates, and a plain grid of twelve equal bets."""
    lines = [
        "| stable/canary a window | rates | knows both rates | plain grid | this judge | bound |",
        "|---|---|---:|---:|---:|---:|",
    ]
    policy = Policy.from_dict(
        {"metrics": [{"name": "errors", "max_ratio": 1}], "min_requests": 1, "deadline_windows": WINDOWS}
    )
    settings = (
        (180, 20, 0.01, 0.05, 1.5),
        (180, 20, 0.001, 0.02, 1.5),
        (900, 100, 0.01, 0.02, 2.0),
        (900, 100, 0.01, 0.05, 2.0),
        (1800, 200, 0.02, 0.03, 2.0),
    )
    for stable, canary, rate, worse, factor in settings:
        counts = draw(Scene("", stable, canary, rate, worse), 200)
        _, windows = outcomes(policy, counts)
        b, s, n = counts.canary_bad[..., 0], counts.stable_bad[..., 0], counts.canary_requests
        best = _mean_first((b * np.log(worse / rate) + (n - b) * np.log((1 - worse) / (1 - rate))).cumsum(axis=1))
        fair = canary / (canary + stable)
        excess = np.where(b + s > 0, b / np.maximum(b + s, 1) / fair - 1, 0)
        wealth = np.mean([np.exp(np.log1p(c * excess).cumsum(axis=1)) for c in np.linspace(0.05, 0.95, 12)], axis=0)
        lines.append(
            f"| {stable}/{canary} | {rate:.1%} → {worse:.1%} | {best:.1f} | {_mean_first(np.log(wealth)):.1f} "
            f"| **{windows.mean():.1f}** | {factor * best + 2:.1f} |"
        )
    return "\n".join(lines)


def _mean_first(logs: Floats) -> float:
    """Mean windows until the evidence reaches 100."""
    return float(((logs >= np.log(100)).argmax(axis=1) + 1).mean())


def kayenta_check() -> str:
    """Our Kayenta against the figures of docs/facts.md#kayenta: caught in one look after 15 windows."""
    lines = ["| rates, stable/canary a window | expected | here |", "|---|---:|---:|"]
    known = (
        (180, 20, 0.01, 0.05, "15–17 %"),
        (180, 20, 0.001, 0.02, "0 %"),
        (900, 100, 0.01, 0.05, "99.5 %"),
        (900, 100, 0.001, 0.02, "85–86 %"),
    )
    for stable, canary, rate, worse, said in known:
        counts = draw(Scene("", stable, canary, rate, worse), 300)
        x, y = counts.canary_bad[:, :15, 0] / canary, counts.stable_bad[:, :15, 0] / stable
        lines.append(f"| {rate:.1%} → {worse:.1%}, {stable}/{canary} | {said} | {peers.is_high(x, y).mean():.1%} |")
    return "\n".join(lines)


def cost_table() -> str:
    policy = Policy.from_dict(
        {
            "metrics": [{"name": n, "max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005} for n in "abc"],
            "traffic": 0.1,
            "min_requests": 10**9,
        }
    )
    windows = [
        Window.from_dict(
            {
                "canary": {"requests": 20, "bad": dict.fromkeys("abc", 0)},
                "stable": {"requests": 180, "bad": dict.fromkeys("abc", i % 3)},
            }
        )
        for i in range(360)
    ]
    one = Judge(policy)
    one.extend(windows)
    single = Policy.from_dict(policy.to_dict() | {"metrics": [policy.metrics[0].to_dict()], "traffic": None})
    many = [
        Window.from_dict(
            {
                "canary": {"requests": 20, "bad": {"a": 0}},
                "stable": {"requests": 180, "bad": {"a": i % 3}},
            }
        )
        for i in range(10_000)
    ]
    figures = (
        ("1 metric over 10 000 windows, with every sentence", lambda: judge(single, many), 20, "50 ms"),
        ("3 metrics over 360 windows, with every sentence", lambda: judge(policy, windows), 50, ""),
        ("a new window: evidence and decision", lambda: one.extend(windows[:1]), 500, ""),
        ("a new window: verdict with every sentence", lambda: one.add(windows[0]), 500, ""),
    )
    lines = ["| what | median, processor time | at most |", "|---|---:|---:|"]
    lines += [f"| {name} | {_median(what, times):.3g} ms | {bound} |" for name, what, times, bound in figures]
    return "\n".join(lines)


def _median(what: Callable[[], object], times: int) -> float:
    """Milliseconds of the processor: what else the machine does is no cost of the judge's."""
    took = []
    for _ in range(times):
        start = time.process_time()
        what()
        took.append(time.process_time() - start)
    return 1000 * float(np.median(took))


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(RULES, ("#1b6ca8", "#b0b7bf", "#d98841", "#8c6bb1"), strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), sharey=True, layout="constrained")
    scenes = list(reversed(SCENES))
    for i, rule in enumerate(RULES):
        mine = {row.scene.name: row for row in rows if row.rule == rule}
        places = np.arange(len(scenes)) + 0.3 - 0.2 * i
        values = [100 * mine[s.name].wrong for s in scenes]
        errors = [
            [100 * (mine[s.name].wrong - mine[s.name].low) for s in scenes],
            [100 * (mine[s.name].high - mine[s.name].wrong) for s in scenes],
        ]
        axes[0].barh(places, values, 0.19, xerr=errors, color=colours[rule], label=rule, ecolor="#444444")
        if rule == RULES[0]:
            open_ended = [100 * mine[s.name].undecided for s in scenes]
            axes[0].barh(
                places,
                open_ended,
                0.19,
                left=values,
                color="white",
                edgecolor=colours[rule],
                hatch="////",
                linewidth=0.6,
                label="undecided (this judge only)",
            )
        axes[1].barh(places, [mine[s.name].windows for s in scenes], 0.19, color=colours[rule])
    axes[0].set_yticks(range(len(scenes)), [f"{s.name}\n({s.stable}/{s.canary} a window)" for s in scenes])
    axes[0].set_xlim(0, 100)
    axes[0].set_xlabel("wrong decisions, % (good: rolled back; bad: promoted); hatched: none yet")
    axes[1].set_xlabel("mean windows of 10 s to the decision")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into both READMEs, and judge.png")
    parser.add_argument("--only", metavar="SECTION", nargs="+", help="only these tables, without the comparison")
    options = parser.parse_args()
    alone = {"judge-speed": speed_table, "judge-kayenta": kayenta_check, "judge-cost": cost_table, **promises.SECTIONS}
    alone["judge-releases"] = courses.whole_releases
    if unknown := set(options.only or ()) - alone.keys():
        parser.error(f"{', '.join(sorted(unknown))}: unknown; there are {', '.join(alone)}")
    for name in options.only or alone:
        _show({name: alone[name]()}, write_it=options.write)
    if options.write and "judge-releases" in (options.only or alone):
        write({"judge-whole": courses.in_short()}, HERE.parent / "README.md")
    if options.only:
        return
    rows = compare()
    _show({"judge-comparison": comparison_table(rows)}, write_it=options.write)
    if options.write:
        write({"judge-summary": summary_table(rows)}, HERE.parent / "README.md")
        plot(rows, HERE / "judge.png")


def _show(sections: dict[str, str], *, write_it: bool) -> None:
    """Each table as soon as it is there: the whole takes minutes."""
    for name, body in sections.items():
        print(f"\n## {name}\n\n{body}", flush=True)
    if write_it:
        write(sections, HERE / "README.md")


if __name__ == "__main__":
    main()
