"""The walk-through's counts, charts and page, from made-up numbers; tests/e2e walks."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

from model_release.metrics.profiles import profile
from model_release.metrics.prometheus import Prometheus, Series
from model_release.model_file import load
from sandbox import walkthrough_page
from sandbox.load import LoadGenerator
from sandbox.programs import REPOSITORY
from sandbox.walkthrough import CANARY, TASKS
from sandbox.walkthrough_charts import Measured, Share, _counted, draw
from sandbox.walkthrough_models import MODELS, SERVICE
from sandbox.walkthrough_page import Snapshot, Stage, Walk

ONE, TWO, THREE = REVISIONS = [f"classifier-vit-predictor-0000{number}" for number in (1, 2, 3)]


def measured(began: float, ended: float, volumes: dict[str, float]) -> Measured:
    def share(revision: str, volume: float) -> Share:
        moments = range(round(began), round(ended))
        latency = {quantile: [(float(moment), 20 * quantile) for moment in moments] for quantile in (0.5, 0.95)}
        requests = round(volume * (ended - began))
        return Share(revision, requests, 0, 10.4, 19.6, [(float(moment), volume) for moment in moments], latency)

    return Measured(began, ended, tuple(share(revision, volume) for revision, volume in volumes.items()))


def walk() -> Walk:
    def stage(title: str, *told: Any) -> Stage:
        began, ended, volumes = told
        answers = Counter({(revision, "sad"): round(volume / 2) for revision, volume in volumes.items()})
        snapshot = Snapshot("NAME   URL\nclassifier-vit   http://x\n", "NAME\npod-1\n", answers)
        sentence = "It went well." if title.endswith("100 %") else ""
        return Stage(title, snapshot, measured(began, ended, volumes), sentence)

    stages = (
        stage("emotions at 100 %", 0, 20, {ONE: 60}),
        stage("age groups at 30 %", 50, 90, {ONE: 42, TWO: 18}),
        stage("age groups at 100 %", 95, 115, {TWO: 60}),
        stage("hand gestures at 30 %", 150, 190, {TWO: 42, THREE: 18}),
        stage("hand gestures at 100 %", 195, 215, {THREE: 60}),
    )
    users = {ONE: {"200": 2000}, TWO: {"200": 3000, "503": 2}}
    return Walk(stages, measured(0, 215, dict.fromkeys(REVISIONS, 50.0)), users, 283.4, 60.0)


def test_requests_are_counted_exactly_through_births_restarts_and_ends() -> None:
    def series(revision: str, code: str, *samples: tuple[int, float]) -> Series:
        return Series({"destination_workload": f"{revision}-deployment", "response_code": code}, list(samples))

    class Told:
        def raw(self, selector: str, after: int, until: int) -> list[Series]:
            assert (after, until) == (95_000, 110_000)
            return [
                series(ONE, "200", (99_000, 500), (101_000, 510), (104_000, 530)),  # and then it was gone
                series(ONE, "503", (99_500, 7), (109_000, 9)),
                series(TWO, "200", (103_000, 4), (105_000, 10), (107_000, 3)),  # born, and started anew
            ]

    found = _counted(cast(Prometheus, Told()), profile("istio"), "models", REVISIONS, 100.0, 110.0)
    assert found == {ONE: (32, 2), TWO: (13, 0)}


def test_a_chart_names_its_revisions_and_has_equal_bytes_for_equal_numbers(tmp_path: Path) -> None:
    stage = measured(50, 90, {ONE: 42, TWO: 18})
    for name in ("one.svg", "two.svg"):
        draw(stage, REVISIONS, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    text = " ".join("".join(ElementTree.parse(tmp_path / "one.svg").getroot().itertext()).split())
    assert f"{ONE}: 70.0 %" in text
    assert f"{TWO}: 30.0 %" in text
    assert "requests a second" in text
    assert "latency, ms" in text


def test_a_revision_keeps_its_colour(tmp_path: Path) -> None:
    def colours(name: str, stage: Measured) -> set[str]:
        draw(stage, REVISIONS, tmp_path / name)
        return set(re.findall(r"fill: (#\w+); fill-opacity: 0.18", (tmp_path / name).read_text()))

    both = colours("both.svg", measured(0, 20, {TWO: 42, THREE: 18}))
    (second,), (third,) = (colours(f"{name}.svg", measured(0, 20, {name: 60})) for name in (TWO, THREE))
    assert second != third
    assert both == {second, third}


def test_a_share_of_no_requests_is_none() -> None:
    nobody = Share(ONE, 0, 0, math.nan, math.nan, [], {})
    assert Measured(0, 1, (nobody,)).percent(nobody) == 0


def test_the_page_has_five_stages_with_what_was_printed_counted_and_drawn(tmp_path: Path) -> None:
    page = tmp_path / "walk.md"
    walkthrough_page.write(walk(), page)
    text = page.read_text()
    assert re.findall(r"^## (\d\. .*)$", text, re.MULTILINE) == [
        "1. Emotions at 100 %",
        "2. Age groups at 30 %",
        "3. Age groups at 100 %",
        "4. Hand gestures at 30 %",
        "5. Hand gestures at 100 %",
    ]
    assert "4:43 minutes on " in text
    assert "5002 in all, of which 2 failed." in " ".join(text.split())
    assert text.count("$ kubectl -n models get isvc classifier-vit\nNAME   URL\nclassifier-vit   http://x\n$ kube") == 5
    assert f"One image, 30 times at the front door: 21 × sad from {ONE}, 9 × sad from\n{TWO}." in text
    assert f"| {ONE} | 1680 | 70.0 % | 0 | 10 ms | 20 ms |\n| {TWO} | 720 | 30.0 % | 0 | 10 ms | 20 ms |" in text
    assert text.count("> It went well.") == 3
    charts = re.findall(r"\]\((walk/[\w.]+)\)", text)
    assert charts == [*(f"walk/{number}.svg" for number in range(1, 6)), "walk/whole.svg"]
    assert all((tmp_path / chart).is_file() for chart in charts)
    walkthrough_page.write(walk(), page)
    assert page.read_text() == text, "written twice"


def test_every_stage_has_its_words() -> None:
    first, *others = (what for what, _ in TASKS.values())
    titles = [f"{first} at 100 %", *(f"{what} at {percent} %" for what in others for percent in (CANARY, 100))]
    assert list(walkthrough_page._STAGES) == titles


def test_replicas_and_step_are_those_of_the_model_files() -> None:
    for model, (_, replicas) in TASKS.items():
        spec = load(REPOSITORY / "include" / "models" / f"{model}.yaml")
        assert (f"{spec.service.namespace}/{spec.service.name}", spec.rollout.steps) == (SERVICE, (CANARY,))
        assert spec.service.min_replicas == replicas
        assert spec.source.hub == MODELS[model].repository


def test_the_page_in_docs_is_of_this_code_and_its_links_lead_somewhere() -> None:
    page = REPOSITORY / "docs" / "walkthrough.md"
    text = page.read_text()
    for words in (*walkthrough_page._STAGES.values(), walkthrough_page._END.format(charts="walkthrough")):
        assert words in text, "make walkthrough"
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert len(linked) >= 9
    assert [path for path in linked if not (page.parent / path).is_file()] == []


def test_a_service_gets_its_own_images_and_every_other_one_the_usual() -> None:
    generator = LoadGenerator("http://127.0.0.1:1", [b"usual"], others={"models/own": lambda: [b"own", b"two"]})
    usual, own = (generator.bodies(service) for service in ("models/digits", "models/own"))
    assert usual == [b'{"instances": [{"data": "dXN1YWw="}]}']
    assert own == [b'{"instances": [{"data": "b3du"}]}', b'{"instances": [{"data": "dHdv"}]}']
