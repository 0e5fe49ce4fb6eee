"""The lines of a service, from Prometheus' answers to points."""

from __future__ import annotations

import math
from datetime import datetime

import pytest

from model_release.metrics.profiles import PROFILES
from model_release.metrics.prometheus import Series
from model_release.spec import ModelSpec
from model_release.web.traffic import RANGES, queries, series

from .makers import NOW, spec
from .world import World

END = NOW.timestamp()


def lines(world: World, found: dict[str, list[Series]], *, span: float = 900) -> dict[str, object]:
    def answer(promql: str, moment: datetime) -> list[Series]:
        return found["latency" if "histogram_quantile" in promql else "requests"]

    world.lines = answer
    return series(world.prometheus(), spec("digits"), start=END - span, end=END)


def one(revision: str, code: str, samples: list[tuple[int, float]]) -> Series:
    return Series({"destination_workload": f"{revision}-deployment", "response_code": code}, samples)


def test_requests_add_up_over_codes_and_bad_ones_are_a_share(world: World) -> None:
    now = round(END) * 1000
    told = lines(
        world,
        {
            "requests": [
                one("digits-predictor-00002", "200", [(now, 9.0)]),
                one("digits-predictor-00002", "503", [(now, 1.0)]),
                one("digits-predictor-00001", "200", [(now, 0.0)]),
            ],
            "latency": [],
        },
    )
    assert told["requests"]["digits-predictor-00002"][-1] == 10
    assert told["bad"]["digits-predictor-00002"][-1] == pytest.approx(0.1)
    assert told["bad"]["digits-predictor-00001"][-1] is None, "no request has no share"
    assert told["requests"]["digits-predictor-00001"][0] is None, "no sample is a gap"


def test_what_is_not_this_service_and_no_number_is_left_out(world: World) -> None:
    now = round(END) * 1000
    told = lines(
        world,
        {
            "requests": [
                one("digits-predictor-extra-predictor-00001", "200", [(now, 9.0)]),
                one("digits-predictor-00001", "200", [(now, math.nan)]),
            ],
            "latency": [],
        },
    )
    assert told["revisions"] == ["digits-predictor-00001"]
    assert set(told["requests"]["digits-predictor-00001"]) == {None}


@pytest.mark.parametrize("shown", RANGES)
def test_no_range_has_more_points_than_a_screen(world: World, shown: str) -> None:
    told = lines(world, {"requests": [], "latency": []}, span=RANGES[shown])
    times = told["times"]
    assert isinstance(times, list)
    assert 60 <= len(times) <= 181
    assert all(moment % told["step"] == 0 for moment in times), "the same moments at each poll"


@pytest.mark.parametrize("name", PROFILES)
def test_queries_name_the_service_of_each_profile(name: str) -> None:
    given = spec("digits").model_dump(mode="json")
    given["judge"]["profile"] = name
    given["judge"]["metrics"] = [given["judge"]["metrics"][0]]
    asked = queries(ModelSpec.model_validate(given), step=5)
    assert "digits-predictor-" in asked["requests"]
    assert "models" in asked["requests"]
    assert asked["latency"].count("histogram_quantile") == 3
