"""One release at a time, against the real API server of the sandbox."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from kubernetes.client import CoordinationV1Api
from tests.patience import LIMIT

from model_release.cluster.change import Baseline
from model_release.cluster.lease import RELEASE, Held, Lease
from model_release.cluster.release import Owner, Phase, Release, Watched
from model_release.cluster.settle import settle
from model_release.errors import ClusterRefused, ServiceBusy

BASELINE = Baseline("u", "r1", {"model": {"storageUri": "s3://b/v1/"}}, "s3://b/v1/", "r1", None)


def acquire(live: Any, owner: Owner, **more: Any) -> Lease:
    lease = live.leases.acquire("models", "digits", owner, **more)
    assert isinstance(lease, Lease), str(lease)
    return lease


def record(live: Any, owner: Owner, **fields: Any) -> Lease:
    lease: Lease = live.leases.update("models", "digits", owner, lambda claim: replace(claim, **fields))
    return lease


def of(owner: Owner, **facts: Any) -> Release:
    return Release(owner, namespace="models", name="digits", **facts)


def test_first_come_first_served(live: Any) -> None:
    one, two = live.owner("run-1"), live.owner("run-2")
    assert live.leases.read("models", "digits") is None
    lease = acquire(live, one, record="digits-1")
    assert lease.release == of(one, record="digits-1")
    held = live.leases.acquire("models", "digits", two)
    assert isinstance(held, Held)
    assert (held.by, held.stage) == (one, "claimed")
    assert str(held).startswith("models/digits is being released by release_digits run-1 (claimed, since 20")
    assert str(held).endswith("): http://airflow/runs/run-1")
    assert live.leases.give_free("models", "digits", one) is True
    assert acquire(live, two).release == of(two)
    assert live.leases.give_free("models", "digits", one) is False
    assert live.leases.read("models", "digits").holder == two.identity


def test_the_same_run_of_another_installation_is_another_owner(live: Any) -> None:
    acquire(live, live.owner("run-1"))
    other = replace(live.owner("run-1"), installation="production")
    assert isinstance(live.leases.acquire("models", "digits", other), Held)


def test_again_by_the_same_run_keeps_what_was_recorded(live: Any) -> None:
    owner = live.owner("run-1")
    acquire(live, owner)
    facts: dict[str, Any] = {"baseline": BASELINE, "phase": Phase.OPEN, "canary": "r2", "watches": (Watched(30),)}
    record(live, owner, **facts, barred=("r2",))
    assert acquire(live, owner, record="another").release == of(owner, **facts, barred=("r2",))


def test_an_update_that_changes_nothing_writes_nothing(live: Any) -> None:
    owner = live.owner("run-1")
    before = acquire(live, owner).raw["metadata"]["resourceVersion"]
    assert record(live, owner, phase=Phase.CLAIMED).raw["metadata"]["resourceVersion"] == before
    assert record(live, owner, phase=Phase.OPEN).raw["metadata"]["resourceVersion"] != before


def test_taken_over_only_from_the_owner_that_was_looked_up(live: Any) -> None:
    one, two, three = (live.owner(f"run-{n}") for n in (1, 2, 3))
    acquire(live, one)
    left = record(live, one, baseline=BASELINE, canary="r2", phase=Phase.OPEN).release
    assert isinstance(live.leases.acquire("models", "digits", three, over=two), Held)
    lease = acquire(live, two, over=one)
    assert lease.release == of(two, inherited=left)
    assert lease.raw["spec"]["leaseTransitions"] == 1
    with pytest.raises(ServiceBusy, match=r"held by laptop/release_digits/run-2, not by laptop/release_digits/run-1"):
        record(live, one, phase=Phase.PROMOTED)
    # It died before it settled what it inherited: that goes on to the next.
    assert acquire(live, three, over=two).release == of(three, inherited=left)
    assert record(live, three, inherited=None).release == of(three)


def test_the_known_baseline_outlives_its_release(live: Any) -> None:
    one, two = live.owner("run-1"), live.owner("run-2")
    assert acquire(live, one).known is None
    record(live, one, baseline=BASELINE)
    live.leases.give_free("models", "digits", one)
    assert acquire(live, two).known == BASELINE
    # A baseline without a template is worth less than an old one with it.
    assert record(live, two, baseline=replace(BASELINE, template=None)).known == BASELINE


def test_frozen_until_lifted(live: Any) -> None:
    one, two = live.owner("run-1"), live.owner("run-2")
    live.leases.freeze("models", "digits", "audit until Friday, Ada")
    held = live.leases.acquire("models", "digits", one)
    assert isinstance(held, Held)
    assert str(held) == "models/digits is frozen: audit until Friday, Ada"
    assert live.leases.freeze("models", "digits", None).frozen is None
    acquire(live, one)
    live.leases.freeze("models", "digits", "again")
    assert acquire(live, one).frozen == "again"
    live.leases.give_free("models", "digits", one)
    assert isinstance(live.leases.acquire("models", "digits", two), Held)


def test_bar_remembers_once(live: Any) -> None:
    owner = live.owner("run-1")
    acquire(live, owner)
    remember = live.leases.bar("models", "digits", owner)
    for revision in ("r2", "r3", "r2"):
        remember(revision)
    assert live.leases.read("models", "digits").release.barred == ("r2", "r3")


def test_ten_at_once_one_wins(live: Any) -> None:
    answers: list[object] = []

    def run(number: int) -> None:
        answers.append(live.leases.acquire("models", "digits", live.owner(f"run-{number}")))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(answer).__name__ for answer in answers) == ["Held"] * 9 + ["Lease"]


@pytest.mark.parametrize("fault", [{"status": 500, "after_write": True}, {"status": 409}, {"status": 503}])
def test_each_write_cut_off_once(live: Any, fault: dict[str, Any]) -> None:
    owner = live.owner("run-1")
    live.fault("create", "leases", times=1, **fault)
    acquire(live, owner)
    live.fault("patch", "leases", times=1, **fault)
    record(live, owner, phase=Phase.OPEN)
    live.fault("patch", "leases", times=1, **fault)
    live.leases.give_free("models", "digits", owner)
    assert not live.cluster.faults.active
    assert live.leases.read("models", "digits").holder is None


def test_a_holder_that_is_no_release_is_respected(live: Any) -> None:
    CoordinationV1Api(live.client).create_namespaced_lease(
        "models", {"metadata": {"name": "model-release-digits"}, "spec": {"holderIdentity": "somebody"}}
    )
    held = live.leases.acquire("models", "digits", live.owner("run-1"))
    assert isinstance(held, Held)
    assert "held by somebody unknown" in str(held)


WHOLE = json.dumps(Release(Owner("release_digits", "run-1", "url", "laptop"), canary="r2").as_dict())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("by hand, anna", "it is no whole JSON"),
        (WHOLE[: len(WHOLE) // 2], "it is no whole JSON"),
        ("[]", "it names no owner"),
        (json.dumps({"holder": "another-tool"}), "it names no owner"),
        (json.dumps({"owner": {"name": "x"}}), "unexpected keyword argument 'name'"),
        (WHOLE.replace('"format": 3', '"format": 4'), "a newer edition wrote it: format 4, and this one reads 3"),
        (WHOLE.replace('"canary"', '"rainbow"'), "'rainbow' is no field of a release"),
        (WHOLE.replace('"claimed"', '"blue-green"'), "'blue-green' is not a valid Phase"),
        (json.dumps({"owner": json.loads(WHOLE)["owner"], "stage": "blue-green"}), "'blue-green' is no phase"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line_and_nothing_moves(live: Any, text: str, why: str) -> None:
    """Written by hand, cut in half, of another tool, of a newer edition."""
    lease = acquire(live, live.owner("run-1"))
    name = lease.raw["metadata"]["name"]
    CoordinationV1Api(live.client).patch_namespaced_lease(
        name, "models", {"metadata": {"annotations": {RELEASE: text}}}
    )
    before = live.leases.read("models", "digits").raw
    for hand in (
        lambda: live.leases.acquire("models", "digits", live.owner("run-2")),
        lambda: live.leases.renew("models", "digits", live.owner("run-1"), "triggerer"),
        lambda: live.leases.give_free("models", "digits", live.owner("run-1")),
    ):
        with pytest.raises(ClusterRefused) as told:
            hand()
        assert f"annotation model-release/claim cannot be read: {why}" in str(told.value).replace(
            "Owner.__init__() got an ", ""
        )
        assert "\n" not in str(told.value)
    assert live.leases.read("models", "digits").raw == before


def test_a_settle_killed_in_between_goes_on_from_the_lease(live: Any) -> None:
    """Stage, open, die; another run takes the lease over and settles with nothing but what it holds."""
    live.released("v1")
    one, two = live.owner("run-1"), live.owner("run-2")
    acquire(live, one)
    baseline, canary = live.stage("v2")
    record(live, one, baseline=baseline, canary=canary.revision, phase=Phase.OPEN)
    live.shift(canary, 40)
    claim = acquire(live, two, over=one).release
    assert claim is not None
    release = claim.inherited
    assert release is not None
    sentence = settle(live.services, release, live.leases.bar("models", "digits", two), deadline=LIMIT, poll=0.01)
    record(live, two, inherited=None)
    assert sentence == "digits-predictor-00003 has all of the traffic"
    assert live.get().storage_uri == "s3://models/digits/versions/v1/"
