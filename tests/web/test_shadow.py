"""What the page of a release says of the pictures that both sides answered before any user."""

from __future__ import annotations

from .conftest import Open
from .makers import at
from .world import World


def test_a_shadow_is_told_with_both_sides_and_what_changed(world: World, browse: Open) -> None:
    record = next(one for one in world.records.values() if one.shadow)
    told = browse().get(f"/api/releases/{record.release}").json()["shadow"]
    assert (told["badge"]["name"], told["changed"], told["lost"]) == ("within", 6, 1)
    text = browse().get(f"/releases/{record.release}").text
    for words in (
        "6 of 500 pictures got another answer than stable&#39;s",
        "Compared before any user",
        "Within its limit",
        'data-name="Failed" class="num">1<',
        'data-name="Half within" class="num">20 ms<',
        'data-name="Canary says">sad</td><td data-name="Pictures" class="num">5<',
        'phone</th><td data-name="Pictures" class="num">20</td><td data-name="Changed" class="num">6<',
    ):
        assert words in text, words


def test_a_shadow_without_pictures_says_so_and_has_no_table(world: World, browse: Open) -> None:
    record = next(one for one in world.records.values() if one.model == "faces")
    said = "No pictures to compare by: samples is no folder."
    record.shadow = {"time": at(0.5), "from": "samples", "passed": False, "decision": "missing", "sentence": said}
    text = browse().get(f"/releases/{record.release}").text
    assert said in text
    assert "Half within" not in text
