"""What retention removes, and above all what it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from model_release.cluster.release import Owner
from model_release.errors import (
    CanaryLost,
    ClusterUnavailable,
    ServiceBusy,
    StoreRefused,
    StoreUnavailable,
    VersionDamaged,
)
from model_release.judging.record import Record
from model_release.release import retention
from model_release.release.index import History
from model_release.release.retention import Cluster, LiveService, Pruning
from model_release.spec import Keep
from model_release.store.store import Store

Make = Callable[..., Record]
Put = Callable[[Record], Record]
Publish = Callable[..., str]

ME = Owner("python -m model_release prune", "me", "", "by hand")
WEEK = timedelta(days=7)


def planned(
    store: Store, services: Sequence[LiveService] = (), *, versions: int = 1, days: int = 30, **other: Any
) -> Pruning:
    keep = Keep(versions=versions, days=days)
    now = other.pop("now", datetime.now(UTC))
    return retention.plan(store, "digits", keep, services, builds_older_than=WEEK, now=now)


def ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


def objects(store: Store) -> list[str]:
    return [key for key, _, _ in store.listing("")]


def test_the_newest_and_the_young_stay(store: Store, publish: Publish) -> None:
    names = {days: publish(days) for days in (1, 10, 40, 50, 60)}
    plan = planned(store, versions=3)
    assert set(plan.removes) == {names[50], names[60]}
    assert plan.keeps[names[1]] == ["one of the newest 3", "1 days old, of 30"]
    assert plan.keeps[names[40]] == ["one of the newest 3"]
    assert plan.removes[names[50]] == "50 days old, older than the newest 3, and nothing names it"
    assert set(planned(store, versions=1).removes) == {names[40], names[50], names[60]}
    assert planned(store, versions=5).empty
    assert planned(store, versions=1, days=90).empty


def test_another_models_versions_in_the_same_store_stay(store: Store, publish: Publish) -> None:
    others = {publish(100, model="faces"), publish(101, model="faces")}
    publish(1)
    plan = planned(store)
    assert plan.empty
    assert not others & set(plan.keeps)


def test_removed_versions_are_gone_whole_and_may_come_back(store: Store, publish: Publish) -> None:
    young, old = publish(1), publish(50)
    store.write_json(f"signatures/{old}.json", {}, if_match=None)
    said: list[str] = []
    retention.apply(store, planned(store), said.append)
    assert said == [f"{old} is removed"]
    assert [version.name for version in store.versions()] == [young]
    assert [key for key in objects(store) if old in key] == [f"pruned/{old}.json"]
    assert planned(store).empty
    retention.apply(store, planned(store), said.append)
    assert len(said) == 1
    with pytest.raises(VersionDamaged, match=r"does not exist; retention removed it at .* \(50 days old, older than"):
        store.version(old)
    assert publish(50) == old
    assert store.version(old).name == old
    assert store.half_removed() == []


def test_cut_off_anywhere_the_next_run_removes_the_rest_and_nobody_takes_it_for_a_version(
    store: Store, publish: Publish
) -> None:
    class Killed(Exception):
        pass

    class Dying(Store):
        calls = 0

        def remove(self, names: Any) -> None:
            Dying.calls += 1
            if Dying.calls == self.at:
                raise Killed
            super().remove(names)

    publish(1)
    for at in (1, 2):
        old = publish(50)
        Dying.calls, Dying.at = 0, at
        with pytest.raises(Killed):
            retention.apply(Dying(store._client, store.uri), planned(store), lambda _: None)
        assert store.half_removed() == [old]
        plan = planned(store)
        assert (plan.rest, list(plan.removes)) == (([], [old]) if at == 1 else ([old], []))
        retention.apply(store, plan, lambda _: None)
        assert [key for key in objects(store) if old in key] == [f"pruned/{old}.json"]
        assert planned(store).empty


def test_a_removal_that_took_nothing_does_not_take_a_version_that_was_released_since(
    store: Store, publish: Publish, release: Make, put: Put
) -> None:
    """S3 refused the deletion, say: the note is written, the version is whole, and somebody releases it again."""

    class Refusing(Store):
        def remove(self, names: Any) -> None:
            raise StoreRefused("AccessDenied")

    publish(1)
    old = publish(50)
    with pytest.raises(StoreRefused):
        retention.apply(Refusing(store._client, store.uri), planned(store), lambda _: None)
    assert publish(50) == old, "a build of equal content finds it"
    put(release(1, version=old, started=ago(0.1)))
    plan = planned(store)
    assert plan.empty
    assert plan.keeps[old] == ["in the record of digits-00001"]
    retention.apply(store, plan, lambda _: None)
    assert store.version(old).name == old


def test_a_version_is_not_published_while_it_is_being_removed_nor_removed_once_it_is_back(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = publish(50)
    note = f"pruned/{old}.json"
    record = store.read_json(f"versions/{old}/version.json")[0]
    store.remove([f"versions/{old}/version.json"])
    said = {"version": old, "time": ago(0), "why": "old", "state": "removing"}
    tag = store.write_json(note, {**said, "until": ago(-0.01)}, if_match=None)
    with pytest.raises(StoreUnavailable, match=r"is just being removed \(old\); try again"):
        publish(50)
    assert store.read_json(f"versions/{old}/version.json")[0] is None
    store.write_json(note, {**said, "until": ago(0.01)}, if_match=tag)
    assert store.half_removed() == [old]
    assert publish(50) == old
    assert store.half_removed() == []
    store.discard(old, "its removal was cut off", resume=True)
    assert store.version(old).files == record["files"]


def live_services(store: Store, live: Any) -> list[LiveService]:
    return retention.services_of(store, ["models/digits"], [at(live)])


def at(live: Any) -> Cluster:
    return Cluster(live.cluster.url, live.services, live.leases)


def test_what_a_service_has_had_or_will_have_stays(
    store: Store, publish: Publish, live: Any, release: Make, put: Put
) -> None:
    """Two versions released, a third one open as canary; a fourth that nobody knows of."""
    first, second, third, fourth, _ = (publish(days) for days in (54, 53, 52, 51, 1))
    one, two = live.released(first, second)
    _, canary = live.stage(third)
    live.shift(canary, 30)
    uri = "s3://models/digits/versions/{}/"
    was = {"revision": one, "storage_uri": uri.format(first)}
    put(release(1, version=first, canary={"revision": one}, started=ago(54)))
    put(release(2, version=second, canary={"revision": two}, baseline=was, started=ago(53)))
    put(release(3, version=third, canary={"revision": canary.revision}, started=ago(52)))
    plan = planned(store, live_services(store, live))
    assert set(plan.removes) == {fourth}
    assert plan.keeps[first] == [f"is a revision of models/digits ({one})"]
    assert plan.keeps[second] == [f"has 70 % of models/digits ({two})"]
    assert plan.keeps[third][0] == "in the spec of models/digits"
    assert plan.keeps[third][1] == f"has 30 % of models/digits ({canary.revision})"


def test_what_a_lease_remembers_stays(store: Store, publish: Publish, live: Any, release: Make, put: Put) -> None:
    """The stable template is only in the lease: KServe knows the canary, the records are old."""
    stable, candidate, third, _ = (publish(days) for days in (53, 52, 51, 1))
    (revision,) = live.released(stable)
    baseline, canary = live.stage(candidate)
    live.leases.acquire("models", "digits", live.owner("run-1"))
    facts = {"baseline": baseline, "canary": canary.revision}
    live.leases.update("models", "digits", live.owner("run-1"), lambda claim: replace(claim, **facts))
    put(release(1, version=candidate, canary={"revision": canary.revision}, started=ago(50)))
    plan = planned(store, live_services(store, live))
    assert set(plan.removes) == {third}
    assert "a baseline in the lease of models/digits" in plan.keeps[stable]
    with pytest.raises(ServiceBusy, match=r"is being released by release_digits run-1 .*; nothing is removed"):
        retention.holding(live.leases, ["models/digits"], ME).__enter__()
    live.leases.give_free("models", "digits", live.owner("run-1"))
    with retention.holding(live.leases, ["models/digits"], ME):
        assert live.leases.read("models", "digits").holder == ME.identity
        assert "a baseline in the lease of models/digits" in planned(store, live_services(store, live)).keeps[stable]
    assert live.leases.read("models", "digits").holder is None
    assert live.leases.read("models", "digits").known.revision == revision


def test_the_restored_template_after_a_roll_back_is_known_as_the_stable_version(
    store: Store, publish: Publish, live: Any, release: Make, put: Put
) -> None:
    """The settled service has a third revision, which no record names, of the first version."""
    stable, bad, _ = (publish(days) for days in (52, 51, 1))
    (one,) = live.released(stable)
    baseline, canary = live.stage(bad)
    live.shift(canary, 30)
    live.settle(baseline, canary.revision)
    was = {"revision": one, "storage_uri": f"s3://models/digits/versions/{stable}/"}
    put(release(1, version=stable, canary={"revision": one}, started=ago(52)))
    put(release(2, version=bad, canary={"revision": canary.revision}, baseline=was, started=ago(51)))
    live.assert_clean(stable)
    assert set(planned(store, live_services(store, live)).removes) == {bad}


def test_young_records_and_unfinished_ones_keep_both_their_versions(
    store: Store, publish: Publish, release: Make, put: Put
) -> None:
    one, two, three, four, _ = (publish(days) for days in (54, 53, 52, 51, 1))
    uri = f"{store.uri}versions/{{}}/"
    put(release(1, version=one, baseline={"storage_uri": uri.format(two)}, started=ago(29)))
    put(release(2, version=three, outcome=None, started=ago(50)))
    put(release(3, version=four, started=ago(31)))
    plan = planned(store)
    assert set(plan.removes) == {four}
    assert plan.keeps[one] == plan.keeps[two] == ["in the record of digits-00001"]
    assert plan.keeps[three] == ["in the record of digits-00002, which has not ended"]


def test_where_something_cannot_be_known_nothing_is_removed(
    store: Store, publish: Publish, live: Any, release: Make, put: Put
) -> None:
    old, other, _ = publish(51), publish(50), publish(1)
    live.released(old, other)
    with pytest.raises(CanaryLost, match=r"models/digits has digits-predictor-00001, and no record says"):
        planned(store, live_services(store, live))
    begun = put(release(1, version=None, outcome=None, started=ago(0.1)))
    with pytest.raises(ServiceBusy, match=f"{begun.release} is about to choose its version"):
        planned(store)
    begun.started = ago(1.1)
    put(begun)
    assert planned(store).removes
    store.write_bytes("releases/broken.json", b"{", "application/json")
    with pytest.raises(VersionDamaged, match=r"releases/broken.json is no JSON.*; it may name any version"):
        planned(store)


def test_services_of_older_releases_are_looked_at_too(store: Store, live: Any, release: Make, put: Put) -> None:
    put(release(1, service="models/letters"))
    with pytest.raises(CanaryLost, match=r"released models/letters by an edition .* --gone models/letters says so"):
        live_services(store, live)
    found = retention.services_of(store, ["models/digits"], [at(live)], ["models/letters"])
    assert [(service.key, service.live) for service in found] == [("models/digits", None), ("models/letters", None)]


def test_17_4_a_version_that_serves_in_another_cluster_stays_whoever_asks(
    store: Store, publish: Publish, live: Any, elsewhere: Any, release: Make, put: Put
) -> None:
    """Number 4: pruned from one cluster, with the versions of another one in the store."""
    there, unused, _ = publish(52), publish(51), publish(1)
    live.released(there)
    (revision,) = elsewhere.released(there)
    elsewhere.leases.acquire("models", "digits", elsewhere.owner("run-1"))
    elsewhere.leases.give_free("models", "digits", elsewhere.owner("run-1"))
    uid = elsewhere.leases.read("models", "digits").uid
    cluster = {"server": "https://elsewhere", "lease": uid}
    put(release(1, version=there, canary={"revision": revision}, started=ago(52), cluster=cluster))
    with pytest.raises(CanaryLost, match=rf"released models/digits at https://elsewhere, with Lease {uid}, and http"):
        live_services(store, live)
    live.leases.acquire("models", "digits", live.owner("run-1"))
    with pytest.raises(CanaryLost, match=r"nothing is removed. --cluster KUBECONFIG asks that one"):
        live_services(store, live)  # a Lease of the same name is another Lease
    both = retention.services_of(store, [], [at(live), at(elsewhere)])
    assert [(one.server, one.live is not None) for one in both] == [
        (live.cluster.url, True),
        (elsewhere.cluster.url, True),
    ]
    live.fault("get", status=503)
    with pytest.raises(ClusterUnavailable):
        retention.services_of(store, [], [at(elsewhere), at(live)])
    live.cluster.faults.active.clear()
    plan = planned(store, both)
    assert set(plan.removes) == {unused}
    assert f"has 100 % of models/digits ({revision})" in plan.keeps[there]
    assert retention.services_of(store, [], [at(live)], [uid])


def test_builds_that_nobody_touches_go(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 1000)
    store.stash("aaaa/checkpoint", tmp_path)
    store.stash("aaaa/export", tmp_path)
    assert planned(store).empty
    plan = planned(store, now=datetime.now(UTC) + timedelta(days=8))
    assert list(plan.builds) == ["aaaa"]
    assert plan.bytes >= 2000
    said: list[str] = []
    retention.apply(store, plan, said.append)
    assert said == ["builds/aaaa/ is removed"]
    assert objects(store) == []


def test_answers_of_archives_that_no_version_has_go(store: Store, publish: Publish) -> None:
    """Those of another model's version stay, and those of an archive that may yet be published."""
    kept, others, old = publish(1), publish(100, model="faces"), publish(50)

    def answers_of(version: str) -> str:
        (archive,) = [said for name, said in store.version(version).files.items() if name.endswith(".mar")]
        return f"evaluations/{archive['sha256'][:16]}-0123456789abcdef.json"

    names = {version: answers_of(version) for version in (kept, others, old)}
    for name in names.values():
        store.write_json(name, {"answers": {}}, if_match=None)
    assert planned(store).answers == {}, "they are young"
    plan = planned(store, now=datetime.now(UTC) + timedelta(days=8))
    assert list(plan.answers) == [names[old]]
    said: list[str] = []
    retention.apply(store, plan, said.append)
    assert said[-1] == "1 objects of evaluations/ are removed"
    assert [key for key in objects(store) if key.startswith("evaluations/")] == sorted({names[kept], names[others]})
    assert planned(store, now=datetime.now(UTC) + timedelta(days=8)).answers == {}


def test_history_reads_what_retention_left(store: Store, publish: Publish, release: Make, put: Put) -> None:
    old, _ = publish(50), publish(1)
    History(store).note(put(release(1, version=old, started=ago(50))))
    retention.apply(store, planned(store), lambda _: None)
    newest = History(store).newest()
    assert newest is not None
    assert newest.version == old
