"""What is down is told on the page, and nothing else is."""

from __future__ import annotations

from model_release.errors import ClusterUnavailable, MetricsUnavailable, StoreUnavailable

from .conftest import Open, row
from .world import World

DOWN = {
    "store": StoreUnavailable("s3://models: no answer"),
    "cluster": ClusterUnavailable("list inferenceservices: the Kubernetes API does not answer"),
    "prometheus": MetricsUnavailable("Prometheus does not answer within 10 s"),
}


def test_store_down_leaves_the_cluster(world: World, browse: Open) -> None:
    world.fault.store = DOWN["store"]
    told = browse().get("/api/fleet").json()
    assert any("s3://models: no answer" in line for line in told["troubles"])
    assert len(told["troubles"]) == 1, "one line, however many stores"
    found = next(it for it in told["services"] if it["service"] == "models/digits")
    assert found["canary"]["percent"] == 10
    assert found["last"] is None
    assert found["last_trouble"]
    page = browse().get("/").text
    assert "Not everything can be shown" in page
    assert "never released" not in page, "what nobody could read is not called nothing"
    assert browse().get("/services/models/digits").status_code == 200
    name = next(iter(world.records))
    answer = browse().get(f"/releases/{name}")
    assert answer.status_code == 503
    assert "s3://models: no answer" in answer.text


def test_cluster_down_leaves_the_store_and_no_zero(world: World, browse: Open) -> None:
    world.fault.cluster = DOWN["cluster"]
    told = browse().get("/api/fleet").json()
    assert {it["state"]["name"] for it in told["services"]} == {"unknown"}
    assert all(it["split"] == [] and it["stable"] is None for it in told["services"])
    assert row(browse, "models/plants")["last"]["outcome"]["name"] == "rolled_back"
    assert told["counts"]["unknown"] == 6
    page = browse().get("/services/models/digits").text
    assert "Who gets the traffic is not known now" in page
    assert "100 %" not in page.split('<h2 id="over-time"')[0]


def test_leases_down_leave_the_services(world: World, browse: Open) -> None:
    world.fault.leases = DOWN["cluster"]
    found = row(browse, "models/digits")
    assert found["canary"]["percent"] == 10
    assert "does not answer" in found["trouble"]


def test_prometheus_down_leaves_marks_and_says_so(world: World, browse: Open) -> None:
    world.fault.prometheus = DOWN["prometheus"]
    told = browse().get("/api/services/models/digits/traffic").json()
    assert told["lines"] is None
    assert told["trouble"] == "Prometheus does not answer within 10 s"
    assert browse().get("/services/models/digits").status_code == 200


def test_a_trouble_of_no_kind_of_ours_is_named_by_its_kind_alone(world: World, browse: Open) -> None:
    world.fault.cluster = RuntimeError("token=secret")
    page = browse().get("/").text
    assert "RuntimeError" in page
    assert "secret" not in page


def test_a_model_file_that_cannot_be_read_is_told_to_who_sees_all(world: World, browse: Open) -> None:
    world.unread = ("include/models/broken.yaml:3: judge: is missing",)
    assert "broken.yaml:3" in browse().get("/").text
    assert len(browse().get("/api/fleet").json()["services"]) == 6


def test_nothing_at_all(world: World, browse: Open) -> None:
    world.specs.clear()
    assert "No service yet" in browse().get("/").text
    assert "Nothing released yet" in browse().get("/releases").text
