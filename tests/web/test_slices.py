"""The slices of a metric on the page of a release."""

from __future__ import annotations

from typing import Any

from model_release.judging import Policy, Side, Window, judge
from model_release.web.evidence import evidence

from .conftest import Open
from .makers import NOW, at
from .world import World


def test_each_slice_is_a_row_with_its_counts_and_the_bad_one_comes_first(world: World, browse: Open) -> None:
    record = next(one for one in world.records.values() if one.model == "faces")
    slices = {"by": "country", "at_least": 100}
    policy = Policy.from_dict({"metrics": [{"name": "errors", "max_rate": 0.1, "slices": slices}], "indifference": 2})

    def side(requests: int, bad: int) -> Side:
        counts: dict[str, Any] = {"<b>fr</b>": (requests, bad), "de": (3 * requests, 0), "li": (1, 0)}
        return Side(4 * requests + 1, {"errors": bad}, slices={"errors": counts})

    windows = [Window(side(20, 6), side(60, 1), start=at(i / 6), end=at((i + 1) / 6)) for i in range(30)]
    verdict = judge(policy, windows)
    assert verdict.decision == "rollback"
    record.steps.clear()
    record.record_step(
        10, NOW.isoformat(), window_seconds=10, policy=policy, windows=windows, final=False, verdict=verdict
    )
    rows = evidence(record)["metrics"][0]["slices"]
    assert [(row["slice"], row["state"]) for row in rows] == [
        ("<b>fr</b>", "beyond the limit"),
        ("de", ""),
        ("li", "too few to judge"),
    ]
    assert (rows[0]["canary"]["share"], rows[1]["canary"]["share"]) == (0.3, 0)
    text = browse().get(f"/releases/{record.release}").text
    assert text.count('aria-label="Slices of errors"') == 1
    assert text.count('<th scope="col">country</th>') == 1
    assert text.count("too few to judge") == 1
    assert "errors among country=&lt;b&gt;fr&lt;/b&gt;: 30 % instead of 1.7 % (" in text
    assert "<b>fr</b>" not in text
