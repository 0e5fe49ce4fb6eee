"""A change of traffic counts when it has taken effect, and not when it was written."""

from __future__ import annotations

import pytest

from model_release.cluster.progress import Progress, State
from model_release.errors import CanaryLost, ClusterUnavailable
from model_release.tasks import service
from model_release.tasks.service import ReleasedService


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> ReleasedService:
    monkeypatch.setattr(service, "ROUTE_SECONDS", 0.6)
    return ReleasedService.__new__(ReleasedService)  # `verified` needs none of the clients


def test_it_waits_until_the_change_is_seen_and_says_each_new_thing(released: ReleasedService) -> None:
    seen = iter([Progress(State.WAITING, "not yet"), Progress(State.READY, "there")])
    said: list[str] = []
    assert released.verified(lambda: next(seen), said.append).sentence == "there"
    assert said == ["not yet", "there"]


def test_a_change_that_is_not_seen_in_time_may_be_tried_again(released: ReleasedService) -> None:
    with pytest.raises(ClusterUnavailable, match="has not taken effect: not yet"):
        released.verified(lambda: Progress(State.WAITING, "not yet"), lambda _: None)


def test_a_service_that_somebody_changed_is_not_waited_for(released: ReleasedService) -> None:
    with pytest.raises(CanaryLost, match="another revision"):
        released.verified(lambda: Progress(State.LOST, "another revision"), lambda _: None)
