"""docs/walkthrough.md: a walk through the mission, written down with what it really printed and counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from sandbox.waiting import clock
from sandbox.walkthrough_charts import Measured, draw, draw_walk

SELECTOR = "serving.kserve.io/inferenceservice=classifier-vit"
COLUMNS = ("revision", "requests", "of all", "failed", "median", "95 %")

_INTRODUCTION = """\
# The mission, walked through

<!-- Written by `make walkthrough`; what is wrong here is fixed in include/sandbox/walkthrough_page.py. -->

One InferenceService, `classifier-vit`, and three Hugging Face models that follow each other on it: the emotions of
faces, then age groups, then the gestures of hands. Each is released by its model file, and each but the first begins
with 30 % of the traffic:

| model file | source | replicas |
|---|---|---|
| [facial-emotions.yaml](../include/models/facial-emotions.yaml) | `hub: dima806/facial_emotions_image_detection` | 1 |
| [face-ages.yaml](../include/models/face-ages.yaml) | `hub: dima806/faces_age_detection` | 2 |
| [hand-gestures.yaml](../include/models/hand-gestures.yaml) | `hub: dima806/hand_gestures_image_detection` | 2 |

What follows is the output of one walk in the sandbox: {duration} minutes on {cores} cores, with {rate:.0f} requests a
second from users at the front door all the time, {requests} in all, of which {failed} failed. On a cluster the same
model files run unchanged. Here the hub is the sandbox's own: it serves small Vision Transformers under the same names,
with the same labels and input size. They are not trained, so *which* label an image gets means nothing; *whose* label
it is shows which model answered.

"30 %" and "100 %" are two moments of **one** release. Nobody types a command between them: the canary is opened to
30 %, the judge looks every ten seconds at what Prometheus counted, and the revision that it finds good is promoted.
A canary that it finds bad is rolled back; `make release` shows that.

## Two replicas, and no revision that nobody judged

`minReplicas` is part of a revision's template: who promotes and scales in one patch, or scales after the promotion,
gets another revision, which takes all of the traffic without having been judged. So the canary is staged with the
replicas that it is to end with, the promotion changes nothing but `canaryTrafficPercent`, and the revision that was
judged is the one that serves.

The price is two pods for 30 % of the traffic, for as long as the evidence takes. Within the limits that the template
names, `minReplicas: 2` and `maxReplicas: 4`, Knative's autoscaler goes up and down as it likes: that makes no
revision.
"""

_STAGES = {
    "emotions at 100 %": """\
The first version of a service has nobody to be compared with. It becomes ready, answers its smoke predictions, and is
live.
""",
    "age groups at 30 %": """\
The canary answers beside the first revision: users get emotions from the one and age groups from the other. It has two
pods already.
""",
    "age groups at 100 %": """\
The judge's word came and the percent changed. The revision is the same, and so are its pods: look at their names. The
revision before it kept its pod for a while, in case of a late roll-back, and has none any more.
""",
    "hand gestures at 30 %": """\
The same once more, from two pods to two others.
""",
    "hand gestures at 100 %": """\
Three releases, three revisions. A fourth, which nobody judged, was never made.
""",
}

_END = """\
## All of it

![Requests a second and latency by revision over the whole walk]({charts}/whole.svg)

*The five load tests are shaded. Between them the next model is fetched, exported, packed, published and staged, on the
same cores that serve.*
"""


@dataclass(frozen=True)
class Snapshot:
    """The service at one moment. `isvc` and `pods` are what kubectl printed, `answers` how often which revision gave
    which label to one and the same image."""

    isvc: str
    pods: str
    answers: Counter[tuple[str, str]]


@dataclass(frozen=True)
class Stage:
    """One of the five: what was so, and what was counted in the meantime. `sentence` is what the release reported, at
    100 %, where it has ended."""

    title: str
    snapshot: Snapshot
    measured: Measured
    sentence: str


@dataclass(frozen=True)
class Walk:
    """All of it. `users` is how often they got which answer, by revision."""

    stages: tuple[Stage, ...]
    whole: Measured
    users: dict[str, dict[str, int]]
    seconds: float
    rate: float


def write(walk: Walk, page: Path) -> None:
    """Writes the page, and its charts into the folder of the same name beside it. What was there is replaced."""
    charts = page.with_suffix("")
    charts.mkdir(parents=True, exist_ok=True)
    revisions = [share.revision for share in walk.whole.shares]
    for number, stage in enumerate(walk.stages, 1):
        draw(stage.measured, revisions, charts / f"{number}.svg")
    named = {str(number): stage.measured for number, stage in enumerate(walk.stages, 1)}
    draw_walk(walk.whole, named, charts / "whole.svg")
    page.write_text("\n".join(_parts(walk, charts.name)), encoding="utf-8")


def rows(measured: Measured) -> Iterator[tuple[str, ...]]:
    """A row of `COLUMNS` for each revision."""
    for share in measured.shares:
        counts = str(share.requests), f"{measured.percent(share):.1f} %", str(share.failed)
        yield share.revision, *counts, f"{share.p50:.0f} ms", f"{share.p95:.0f} ms"


def told(answers: Counter[tuple[str, str]]) -> str:
    """`One image, 30 times at the front door: 21 × sad from …-00001, 9 × OLD from …-00002.`"""
    parts = [f"{count} × {label} from {revision}" for (revision, label), count in sorted(answers.items())]
    return f"One image, {answers.total()} times at the front door: {', '.join(parts)}."


def _parts(walk: Walk, charts: str) -> Iterator[str]:
    answers = Counter(code for answers in walk.users.values() for code in Counter(answers).elements())
    yield _INTRODUCTION.format(
        duration=clock(walk.seconds),
        cores=os.cpu_count(),
        rate=walk.rate,
        requests=answers.total(),
        failed=answers.total() - answers["200"] or "none",
    )
    for number, stage in enumerate(walk.stages, 1):
        yield f"## {number}. {stage.title[0].upper()}{stage.title[1:]}\n"
        yield _STAGES[stage.title]
        yield _shown(stage.snapshot)
        yield _load_test(stage, f"{charts}/{number}.svg")
        if stage.sentence:
            yield f"The release ended with this report:\n\n> {stage.sentence}\n"
    yield _END.format(charts=charts)


def _shown(snapshot: Snapshot) -> str:
    return (
        "```console\n"
        f"$ kubectl -n models get isvc classifier-vit\n{snapshot.isvc}"
        f"$ kubectl -n models get pods -l {SELECTOR}\n{snapshot.pods}"
        "```\n\n"
        f"{fill(told(snapshot.answers), 120, break_on_hyphens=False)}\n"
    )


def _load_test(stage: Stage, chart: str) -> str:
    lines = [COLUMNS, ("---", *("--:" for _ in COLUMNS[1:])), *rows(stage.measured)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    seconds = stage.measured.ended - stage.measured.began
    return (
        f"{table}\n![Requests a second and latency by revision, {stage.title}]({chart})\n\n"
        f"*The load test, {seconds:.0f} seconds: what Prometheus counted at the gateway, by revision. A point tells of "
        "five seconds.*\n"
    )
