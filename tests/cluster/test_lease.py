"""One release at a time, against the real API server of the sandbox."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from kubernetes.client import CoordinationV1Api
from tests.patience import LIMIT

from model_release.cluster.lease import CLAIM, Claim, Held, Lease, Owner
from model_release.cluster.rollout import Baseline
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


def test_first_come_first_served(live: Any) -> None:
    one, two = live.owner("run-1"), live.owner("run-2")
    assert live.leases.read("models", "digits") is None
    lease = acquire(live, one, release="digits-1")
    assert lease.claim == Claim(one, "digits-1")
    held = live.leases.acquire("models", "digits", two)
    assert isinstance(held, Held)
    assert (held.by, held.stage) == (one, "claimed")
    assert str(held).startswith("models/digits is being released by release_digits run-1 (claimed, since 20")
    assert str(held).endswith("): http://airflow/runs/run-1")
    assert live.leases.release("models", "digits", one) is True
    assert acquire(live, two).claim == Claim(two)
    assert live.leases.release("models", "digits", one) is False
    assert live.leases.read("models", "digits").holder == two.identity


def test_the_same_run_of_another_installation_is_another_owner(live: Any) -> None:
    acquire(live, live.owner("run-1"))
    other = replace(live.owner("run-1"), installation="production")
    assert isinstance(live.leases.acquire("models", "digits", other), Held)


def test_again_by_the_same_run_keeps_what_was_recorded(live: Any) -> None:
    owner = live.owner("run-1")
    acquire(live, owner)
    record(live, owner, baseline=BASELINE, stage="open", canary="r2", percent=30, barred=("r2",), promoted=True)
    claim = acquire(live, owner, release="another").claim
    assert claim == Claim(owner, "", "open", BASELINE, "r2", 30, None, True, ("r2",))
    release = claim.as_release("models", "digits")
    assert release is not None
    assert (release.baseline, release.canary, release.promoted, release.barred) == (BASELINE, "r2", True, ("r2",))
    assert Claim(owner).as_release("models", "digits") is None


def test_an_update_that_changes_nothing_writes_nothing(live: Any) -> None:
    owner = live.owner("run-1")
    before = acquire(live, owner).raw["metadata"]["resourceVersion"]
    assert record(live, owner, stage="claimed").raw["metadata"]["resourceVersion"] == before
    assert record(live, owner, stage="open").raw["metadata"]["resourceVersion"] != before


def test_taken_over_only_from_the_owner_that_was_looked_up(live: Any) -> None:
    one, two, three = (live.owner(f"run-{n}") for n in (1, 2, 3))
    acquire(live, one)
    left = record(live, one, baseline=BASELINE, canary="r2", stage="open").claim
    assert isinstance(live.leases.acquire("models", "digits", three, over=two), Held)
    lease = acquire(live, two, over=one)
    assert lease.claim == Claim(two, inherited=left)
    assert lease.raw["spec"]["leaseTransitions"] == 1
    with pytest.raises(ServiceBusy, match=r"held by laptop/release_digits/run-2, not by laptop/release_digits/run-1"):
        record(live, one, stage="promoted")
    # It died before it settled what it inherited: that goes on to the next.
    assert acquire(live, three, over=two).claim == Claim(three, inherited=left)
    assert record(live, three, inherited=None).claim == Claim(three)


def test_the_known_baseline_outlives_its_release(live: Any) -> None:
    one, two = live.owner("run-1"), live.owner("run-2")
    assert acquire(live, one).known is None
    record(live, one, baseline=BASELINE)
    live.leases.release("models", "digits", one)
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
    live.leases.release("models", "digits", one)
    assert isinstance(live.leases.acquire("models", "digits", two), Held)


def test_bar_remembers_once(live: Any) -> None:
    owner = live.owner("run-1")
    acquire(live, owner)
    remember = live.leases.bar("models", "digits", owner)
    for revision in ("r2", "r3", "r2"):
        remember(revision)
    assert live.leases.read("models", "digits").claim.barred == ("r2", "r3")


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
    record(live, owner, stage="open")
    live.fault("patch", "leases", times=1, **fault)
    live.leases.release("models", "digits", owner)
    assert not live.cluster.faults.active
    assert live.leases.read("models", "digits").holder is None


def test_a_holder_that_is_no_release_is_respected(live: Any) -> None:
    CoordinationV1Api(live.client).create_namespaced_lease(
        "models", {"metadata": {"name": "model-release-digits"}, "spec": {"holderIdentity": "somebody"}}
    )
    held = live.leases.acquire("models", "digits", live.owner("run-1"))
    assert isinstance(held, Held)
    assert "held by somebody unknown" in str(held)


@pytest.mark.parametrize("text", ["not JSON", "[]", json.dumps({"owner": {"name": "x"}}), json.dumps({"future": 1})])
def test_a_record_that_cannot_be_read_is_told(live: Any, text: str) -> None:
    lease = acquire(live, live.owner("run-1"))
    CoordinationV1Api(live.client).patch_namespaced_lease(
        lease.raw["metadata"]["name"], "models", {"metadata": {"annotations": {CLAIM: text}}}
    )
    with pytest.raises(ClusterRefused, match="annotation model-release/claim cannot be read"):
        live.leases.acquire("models", "digits", live.owner("run-2"))


def test_a_settle_killed_in_between_goes_on_from_the_lease(live: Any) -> None:
    """Stage, open, die; another run takes the lease over and settles with nothing but what it holds."""
    live.released("v1")
    one, two = live.owner("run-1"), live.owner("run-2")
    acquire(live, one)
    baseline, canary = live.stage("v2")
    record(live, one, baseline=baseline, canary=canary.revision, stage="open")
    live.shift(canary, 40)
    claim = acquire(live, two, over=one).claim
    assert claim is not None
    assert claim.inherited is not None
    release = claim.inherited.as_release("models", "digits")
    assert release is not None
    sentence = settle(live.services, release, live.leases.bar("models", "digits", two), deadline=LIMIT, poll=0.01)
    record(live, two, inherited=None)
    assert sentence == "digits-predictor-00003 has all of the traffic"
    assert live.get().storage_uri == "s3://models/digits/versions/v1/"
