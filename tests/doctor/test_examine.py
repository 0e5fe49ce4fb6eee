"""What the doctor finds."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import CoordinationV1Api
from tests.tasks.conftest import SPEC

from model_release import metrics
from model_release.build.registry import Registry
from model_release.cluster.lease import GUARD
from model_release.cluster.leases import Leases
from model_release.doctor import Finding, Level, World, airflow, examine
from model_release.errors import ClusterUnavailable, SourceUnavailable, StoreUnavailable
from model_release.judging import Past
from model_release.metrics import Before, Presence
from model_release.spec import ModelSpec
from model_release.spec.judge import Metric
from sandbox.kube.faults import Fault, Match

from .world import deployed


def found(world: World) -> dict[str, list[Finding]]:
    by_check: dict[str, list[Finding]] = {}
    for one in examine(world):
        by_check.setdefault(one.check, []).append(one)
    return by_check


def errors(world: World) -> list[str]:
    return [str(one) for one in examine(world) if one.level is Level.ERROR]


def test_a_world_in_which_a_release_can_work_has_no_errors(world: World) -> None:
    said = found(world)
    assert [one for ones in said.values() for one in ones if one.level is Level.ERROR] == []
    assert {"cluster", "KServe", "Knative", "permissions", "service", "store", "metrics", "clock"} <= said.keys()
    assert said["service"][0].sentence == "models/digits does not exist yet: the next release is its first deployment"
    assert [one.sentence for one in said["clock"]] == [
        f"{name}'s agrees with this machine's" for name in ("the cluster", "the store", "Prometheus")
    ]
    assert world.store().content == {}, "the probe is removed"  # type: ignore[attr-defined]


def test_a_metric_that_is_not_there_is_found_before_any_traffic_moves(kube: Any, world: World) -> None:
    deployed(kube, world.spec)
    (line,) = errors(world)
    assert "a canary beside digits-predictor-00001 could not be judged" in line
    assert "Prometheus holds no series at all" in line
    assert "judge.profile" in line


def test_a_namespace_without_a_guard_is_a_warning_with_the_way_to_one(kube: Any, world: World) -> None:
    def told() -> tuple[Level, str]:
        (one,) = found(world)["guard"]
        assert (one.level is Level.WARNING) == ("include/manifests/guard.yaml" in str(one))
        return one.level, one.sentence

    warned = "a canary would stay open while Airflow is dead"
    assert told() == (Level.WARNING, f"no guard looks at namespace models: {warned}")
    leases = Leases(kube.client)
    leases.beat("models")
    assert told() == (Level.OK, "a guard looks at namespace models")
    last = "2026-11-01T10:00:00.000000Z"
    CoordinationV1Api(kube.client).patch_namespaced_lease(GUARD, "models", {"spec": {"renewTime": last}})
    assert told() == (Level.WARNING, f"no guard looks at namespace models, the last one until {last}: {warned}")
    kube.server.faults.active.append(Fault(match=Match(verb="get", resource="leases", name=GUARD), status=403))
    level, sentence = told()
    assert level is Level.ERROR
    assert "needs verb get on leases.coordination.k8s.io in namespace models" in sentence


def test_a_missing_permission_is_named_with_the_manifest_that_gives_it(
    kube: Any, world: World, monkeypatch: Any
) -> None:
    from model_release.release import rights

    may = rights.may
    monkeypatch.setattr(
        rights,
        "may",
        lambda client, ns, group, resource, verb: verb != "patch" and may(client, ns, group, resource, verb),
    )
    (line,) = errors(world)
    assert "patch inferenceservices.serving.kserve.io" in line
    assert "patch leases.coordination.k8s.io" in line
    assert "kubectl apply -n models -f include/manifests/role.yaml" in line


@pytest.mark.parametrize(
    ("judged", "refused"),
    [
        ({}, True),
        ({"codes": "500"}, True),
        ({"codes": "503"}, False),
        ({"codes": "4xx"}, False),
        ({"observe": True}, False),
    ],
)
def test_t1_a_runtime_that_turns_a_clients_fault_into_the_models_is_refused(
    kube: Any, world: World, judged: dict[str, Any], refused: bool
) -> None:
    """Number 14, T1: KServe's own wrapper, where a limit on 500 would count a bad picture. The default runtime is this
    project's own, and silent."""
    (own,) = found(world)["runtime"]
    assert (own.level, own.sentence) == (Level.OK, "ClusterServingRuntime model-release-torchserve")
    metrics = [Metric.model_validate({"name": "errors", "max_rate": 0.1, **judged})]
    service = world.spec.service.model_copy(update={"runtime": "kserve-torchserve"})
    judge = world.spec.judge.model_copy(update={"metrics": metrics})
    spec = world.spec.model_copy(update={"service": service, "judge": judge})
    there, *told = found(replace(world, spec=spec))["runtime"]
    assert there.sentence == "ClusterServingRuntime kserve-torchserve"
    assert [one.level for one in told] == [Level.ERROR] * refused
    for one in told:
        assert "turns a client's 400 into 500" in one.sentence
        assert "serving_runtime_own.yaml" in one.cure


def test_a_frozen_service_is_told_with_the_way_to_lift_it(kube: Any, world: World) -> None:
    Leases(kube.client).freeze("models", "digits", "audit until Friday")
    (line, *_) = found(world)["service"]
    assert line.level is Level.WARNING, "claim says no, and a build beside it does no harm"
    assert line.sentence == "models/digits is frozen, no release begins: audit until Friday"
    assert line.cure.startswith("python -m model_release thaw models/digits")


def test_a_store_that_lets_versions_be_overwritten_is_refused(world: World) -> None:
    world.store().heeds = False  # type: ignore[attr-defined]
    (line,) = errors(world)
    assert "If-None-Match is not heeded" in line


def test_17_19_a_store_that_heeds_half_of_the_conditions_is_refused(world: World) -> None:
    """Number 19: versions are safe by If-None-Match, records and the index by If-Match."""
    world.store().heeds = "if none"  # type: ignore[attr-defined]
    (line,) = errors(world)
    assert "overwrite what somebody wrote since it read (If-Match is not heeded)" in line
    assert world.store().content == {}  # type: ignore[attr-defined]


def test_a_store_that_is_busy_has_not_shown_that_it_heeds_conditions(world: Any) -> None:
    world.store().heeds, world.store().busy_after = False, 1
    (line,) = found(world)["store"]
    assert (line.level, line.passing, "SlowDown" in line.sentence) == (Level.ERROR, True, True)


def test_each_part_that_cannot_be_reached_spoils_only_itself(world: World) -> None:
    world.store().refused = True  # type: ignore[attr-defined]
    world.prometheus().away = True  # type: ignore[attr-defined]

    def no_cluster() -> Any:
        raise RuntimeError("The conn_id `kubernetes` isn't defined")

    lines = errors(World(world.spec, world.role, no_cluster, world.store, world.prometheus))
    assert [line.split()[1] for line in lines] == ["cluster", "store", "metrics"]
    assert "isn't defined" in lines[0]
    assert "AccessDenied" in lines[1]


def test_a_service_that_was_not_seen_is_not_called_undeployed(world: World) -> None:
    def no_cluster() -> Any:
        raise ClusterUnavailable("no route")

    said = [one.sentence for one in found(replace(world, cluster=no_cluster))["metrics"]]
    assert said == ["Prometheus answers", "profile istio cannot be tried: what models/digits serves is not known"]
    assert found(world)["metrics"][1].sentence.endswith("nothing of models/digits is rolled out")


@pytest.mark.parametrize(
    ("address", "server", "level"),
    [
        ("http://localhost:8080", "https://eks.example", Level.WARNING),
        ("http://127.0.0.1:8080", "https://10.0.0.1:6443", Level.WARNING),
        ("http://127.0.0.1:8080", "http://127.0.0.1:9000", Level.OK),
        ("https://airflow.example", "https://eks.example", Level.OK),
    ],
)
def test_an_airflow_that_anybodys_may_be_called_is_told(address: str, server: str, level: Level) -> None:
    (line,) = airflow.check(address, SimpleNamespace(configuration=SimpleNamespace(host=server)))
    assert (line.level, address in line.sentence) == (level, True)


def test_only_an_airflow_is_asked_for_its_address(world: World) -> None:
    assert "airflow" not in found(world)
    assert [one.level for one in found(replace(world, address="http://127.0.0.1:8080"))["airflow"]] == [Level.OK]


@pytest.mark.parametrize(("off", "level"), [(2, Level.OK), (10, Level.WARNING), (-90, Level.ERROR)])
def test_a_clock_that_is_off_is_told_with_how_much(world: World, off: int, level: Level) -> None:
    world.store().off = timedelta(seconds=off)  # type: ignore[attr-defined]
    (line,) = [one for one in found(world)["clock"] if one.sentence.startswith("the store")]
    assert line.level is level
    if level is not Level.OK:
        assert f"{abs(off)} s off" in line.sentence


@pytest.mark.parametrize(("numbers", "level"), [(0, Level.ERROR), (1, Level.OK), (3, Level.ERROR)])
def test_a_value_that_is_not_one_number_is_told(
    kube: Any, world: World, numbers: int, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_release import metrics

    deployed(kube, world.spec)
    monkeypatch.setattr(metrics, "presence", lambda *_, **__: Presence(True, "seen", "up"))
    monkeypatch.setattr(metrics, "bucket_edges", lambda *_: ())
    monkeypatch.setattr(metrics, "request_rate", lambda *_: 60.0)
    asks = {**SPEC, "judge": {**SPEC["judge"], "values": [{"name": "queue", "query": "up", "max": 3}]}}
    world.prometheus().numbers = numbers  # type: ignore[attr-defined]
    asked = World(ModelSpec.model_validate(asks), world.role, world.cluster, world.store, world.prometheus)
    (line,) = [one for one in found(asked)["metrics"] if one.sentence.startswith("judge.values.queue")]
    assert (line.level, line.passing) == (level, numbers == 0)


def test_slices_that_no_series_tells_are_an_error_with_the_way_to_them(
    kube: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_release import metrics

    deployed(kube, world.spec)
    monkeypatch.setattr(metrics, "presence", lambda *_, **__: Presence(True, "seen", "up"))
    monkeypatch.setattr(metrics, "bucket_edges", lambda *_: ())
    monkeypatch.setattr(metrics, "request_rate", lambda *_: 60.0)
    said = [Presence(True, "2 slices by country", "up"), Presence(False, "no series has the label region", "up")]
    monkeypatch.setattr(metrics, "slices_presence", lambda *_: said)
    good, bad = (one for one in found(world)["metrics"] if one.sentence in [each.sentence for each in said])
    assert (good.level, bad.level, bad.passing) == (Level.OK, Level.ERROR, False)
    assert "docs/metrics.md#slices" in str(bad)


SLOW = (Before(Past.from_dict({"windows": [{"requests": 1, "bad": {"errors": 0}}] * 720}), 0.2, 720), Level.ERROR)
FAST = (Before(Past.from_dict({"windows": [{"requests": 90, "bad": {"errors": 0}}] * 720}), 30.0, 720), Level.OK)
YOUNG = (Before(Past(), None, 0), Level.OK)


@pytest.mark.parametrize(("before", "level"), [SLOW, FAST, YOUNG], ids=["too slow", "fast enough", "not known"])
def test_a_release_that_its_deadline_would_end_is_an_error_and_what_is_not_known_is_none(
    kube: Any, world: World, monkeypatch: pytest.MonkeyPatch, before: Before, level: Level
) -> None:
    deployed(kube, world.spec)
    monkeypatch.setattr(metrics, "presence", lambda *_, **__: Presence(True, "is counted", "up"))
    monkeypatch.setattr(metrics, "bucket_edges", lambda *_, **__: ())
    monkeypatch.setattr(metrics, "read_before", lambda *_, **__: before)
    said = found(world)["plan"]
    assert max(said, key=lambda one: [Level.OK, Level.WARNING, Level.ERROR].index(one.level)).level is level
    assert said[0].sentence.startswith("no past: " if before is YOUNG[0] else "stable: 0 % errors")
    asking = replace(world, spec=world.spec.model_copy(update={"approval": "on_inconclusive"}))
    assert [one for one in found(asking)["plan"] if one.level is Level.ERROR] == []
    if level is Level.ERROR:
        assert said[-1].cure.startswith(
            "or approval: on_inconclusive, and a person decides at the deadline; or rollout.if"
        )
        assert found(asking)["plan"][-1].level is Level.WARNING


@pytest.mark.parametrize(
    ("source", "there", "level", "said"),
    [
        ("models:/digits@candidate", "7", Level.OK, "models:/digits@candidate is version 7"),
        ("models:/digits@candidate", None, Level.WARNING, "set the alias candidate"),
        ("models:/digits/latest", "9", Level.OK, "models:/digits/latest is version 9"),
        ("models:/digits/3", None, Level.WARNING, "models:/digits/3 is no version that MLflow knows -- register"),
        ("models:/digits/3", "away", Level.WARNING, "MLflow does not answer -- can be fixed by time"),
    ],
)
def test_a_registry_that_is_away_or_has_no_such_version_is_a_warning(
    world: World, source: str, there: str | None, level: Level, said: str
) -> None:
    """Never an error: a version that is built, and a promotion, do not wait for a registry."""

    class Answers(Registry):
        def answer(self, *_: Any) -> Any:
            if there == "away":
                raise SourceUnavailable("MLflow does not answer")
            return SimpleNamespace(version=there) if there else None

        at = newest = version = answer

    registry = Answers("http://mlflow")
    spec = ModelSpec.model_validate({**SPEC, "source": {"mlflow": source}})
    (line,) = found(replace(world, spec=spec, mlflow=lambda: registry))["registry"]
    assert line.level is level
    assert said in str(line)
    assert "registry" not in found(world)


def test_samples_that_a_release_would_miss_are_found_before_it_builds_anything(kube: Any, world: World) -> None:
    def said(many: Any, **more: Any) -> Finding:
        shadow = {"from": "s3://models/samples/", "max_changed": 0.02, **more}
        spec = ModelSpec.model_validate({**SPEC, "rollout": {"shadow": shadow}})
        (one,) = found(replace(world, spec=spec, samples=many))["shadow"]
        return one

    def away() -> int:
        raise StoreUnavailable("S3 does not answer")

    assert said(lambda: 0).level is Level.WARNING, "a first deployment is not compared"
    deployed(kube, world.spec)
    assert said(lambda: 500).level is Level.OK
    few = said(lambda: 148)
    assert (few.level, few.passing) == (Level.ERROR, False)
    assert (
        few.sentence == "s3://models/samples/ has 148 pictures, and 149 are the least that can show a share below 2 %"
    )
    assert said(lambda: 148, if_missing="go").level is Level.WARNING
    assert (said(away).level, said(away).passing) == (Level.ERROR, True)
    assert "shadow" not in found(world)
