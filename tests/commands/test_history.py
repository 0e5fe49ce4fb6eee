"""`python -m model_release versions | releases | reindex | prune | sign`, as a person types them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from model_release.commands import main, surroundings
from model_release.errors import SignatureRefused, SpecError
from model_release.judging.record import Record
from model_release.release.index import History
from model_release.store import signing
from model_release.store.store import Store

Run = Callable[..., str]
MODEL = Path(__file__).resolve().parents[2] / "include" / "models" / "digits.yaml"


@pytest.fixture
def models(store: Store, tmp_path: Path) -> Path:
    """The example's model file, with the test's own store, and a key for signatures."""
    folder = tmp_path / "models"
    folder.mkdir()
    content = yaml.safe_load(MODEL.read_text())
    content |= {"store": store.uri, "keep": {"versions": 1, "days": 30}}
    content["signing"] = {"public_key": str(tmp_path / "a.pub"), "private_key": str(tmp_path / "a.pem")}
    (folder / "digits.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def run(s3: Any, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """What a command says; on stderr when it refuses. S3 is found where Airflow has it."""
    connection = {"conn_type": "aws", "login": "key", "password": "secret"}
    extra = {"endpoint_url": s3.endpoint, "region_name": "us-east-1"}
    monkeypatch.setenv("AIRFLOW_CONN_MODEL_STORE", json.dumps({**connection, "extra": extra}))
    monkeypatch.setenv("KUBECONFIG", "/no/such/file")

    def command(*words: str, code: int = 0) -> str:
        assert main([*words, "--models", str(models)]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return command


def ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")


def rows(table: str) -> list[list[str]]:
    """The cells of a table below its head."""
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()[2:] if "  " in line.strip()]


def test_versions_with_what_became_of_each(
    run: Run, store: Store, live: Any, publish: Any, release: Any, put: Any
) -> None:
    first, second, bad, never = (publish(days) for days in (40, 30, 20, 10))
    seen = publish(5, evaluation={"accuracy": 0.978, "passed": True})
    (one,) = live.released(first)
    _, canary = live.stage(second)
    live.shift(canary, 30)
    history = History(store)
    for number, (version, outcome, revision) in enumerate(
        [(first, "first", one), (bad, "rolled_back", "digits-predictor-00009"), (seen, "published", None)]
    ):
        changes = {"canary": {"revision": revision}} if revision else {}
        history.note(put(release(number, version=version, outcome=outcome, started=ago(40 - number), **changes)))
    opened = {"canary": {"revision": canary.revision}, "started": ago(0.01)}
    history.note(put(release(7, version=second, outcome=None, **opened)))
    history.note(put(release(8, version=bad, outcome="published", started=ago(0.001))))

    kubeconfig = ("--kubeconfig", str(live.cluster.kubeconfig))
    found = json.loads(run("versions", "digits", "--json", *kubeconfig))
    assert (found["model"], found["service"], found["store"]) == ("digits", "models/digits", store.uri)
    assert found["traffic_unknown"] is None
    told = [(line["version"], line["fate"], line["traffic"]) for line in found["versions"]]
    assert told == [
        (seen, "published", 0),
        (never, "never released", 0),
        (bad, "rolled back", 0),
        (second, "being released", 30),
        (first, "live", 70),
    ]
    assert found["versions"][0]["evaluation"] == {"accuracy": 0.978, "passed": True}
    assert found["versions"][0]["source"] == "candidates/digits days-5"
    table = rows(run("versions", "digits", *kubeconfig))
    assert [row[0] for row in table] == [seen, never, bad, second, first]
    assert table[0][2:] == ["candidates/digits days-5", "97.8 %", "published", "none"]
    assert table[4][2:] == ["candidates/digits days-40", "not evaluated", "live", "70 %"]
    said = run("versions", "digits", "--limit", "2", *kubeconfig)
    assert len(rows(said)) == 2
    assert said.endswith("3 older ones; --limit shows more\n")


def test_releases_newest_first(run: Run, store: Store, publish: Any, release: Any, put: Any) -> None:
    version = publish(3, evaluation={"accuracy": 0.5})
    for number in range(3):
        record = release(number, version=version, started=ago(3 - number))
        record.reason = "[red]as it was said[/red]"
        History(store).note(put(record))
    said = run("releases", "digits", "--limit", "2")
    table = rows(said)
    assert [row[1:4] for row in table] == [[version, "candidates/digits days-3", "50.0 %"]] * 2
    assert table[0][4:] == ["promoted", "unknown", "[red]as it was said[/red]"]
    assert "There are older ones" in said
    assert "Traffic unknown: no cluster to talk to" in said
    found = json.loads(run("releases", "digits", "--json"))
    assert [entry["release"] for entry in found["releases"]] == ["digits-00002", "digits-00001", "digits-00000"]
    assert found["releases"][0]["traffic"] is None
    assert found["traffic_unknown"].startswith("no cluster to talk to")
    assert found["next"] is None


def test_nothing_yet(run: Run, store: Store) -> None:
    assert run("versions", "digits").startswith(f"{store.uri} has no version of digits\n")
    assert run("releases", "digits").startswith(f"{store.uri} knows of no release of digits\n")
    assert run("reindex", "digits") == f"{store.uri} has 0 releases in its index\n"


def test_reindex(run: Run, store: Store, release: Any, put: Any) -> None:
    put(release(1))
    assert run("reindex", "digits") == f"{store.uri} has 1 releases in its index\n"
    assert History(store).newest() is not None


def test_prune_shows_first_then_removes_and_then_has_nothing_to_do(
    run: Run, store: Store, live: Any, publish: Any, release: Any, put: Any
) -> None:
    old, serving, young = publish(60), publish(50), publish(1)
    (revision,) = live.released(serving)
    put(release(1, version=serving, canary={"revision": revision}, started=ago(50)))
    words = ("prune", "digits", "--kubeconfig", str(live.cluster.kubeconfig))
    said = run(*words)
    assert rows(said)[0][:2] == [old, "goes"]
    assert [row[:2] for row in rows(said)[1:]] == [[young, "stays"], [serving, "stays"]]
    assert said.endswith("Nothing was removed: --yes does it.\n")
    assert len(store.versions()) == 3
    assert live.leases.read("models", "digits") is None, "a dry run takes no lease"
    said = run(*words, "--yes")
    assert f"  {old} is removed\n" in said
    assert [version.name for version in store.versions()] == [young, serving]
    assert live.leases.read("models", "digits").holder is None
    assert run(*words, "--yes").endswith("Nothing is to be removed.\n")


def test_17_4_prune_asks_the_clusters_that_it_is_told_of(
    run: Run, store: Store, live: Any, elsewhere: Any, publish: Any, release: Any, put: Any
) -> None:
    old, _ = publish(50), publish(1)
    (revision,) = elsewhere.released(old)
    elsewhere.leases.acquire("models", "digits", elsewhere.owner("run-1"))
    elsewhere.leases.give_free("models", "digits", elsewhere.owner("run-1"))
    cluster = {"server": elsewhere.cluster.url, "lease": elsewhere.leases.read("models", "digits").uid}
    put(release(1, version=old, canary={"revision": revision}, started=ago(50), cluster=cluster))
    words = ("prune", "digits", "--yes", "--kubeconfig", str(live.cluster.kubeconfig))
    assert "another cluster may serve these versions" in run(*words, code=1)
    assert run(*words, "--cluster", str(elsewhere.cluster.kubeconfig)).endswith("Nothing is to be removed.\n")
    assert "no cluster to talk to" in run(*words, "--cluster", f"{elsewhere.cluster.kubeconfig}@nobody", code=1)
    assert f"  {old} is removed\n" in run(*words, "--gone", cluster["lease"])
    assert len(store.versions()) == 1


def test_prune_refuses_what_it_cannot_know(run: Run, store: Store, live: Any, publish: Any) -> None:
    publish(60), publish(1)
    assert "no cluster to talk to" in run("prune", "digits", "--yes", code=1)
    live.leases.acquire("models", "digits", live.owner("run-1"))
    kubeconfig = ("--kubeconfig", str(live.cluster.kubeconfig))
    assert "is being released by release_digits run-1" in run("prune", "digits", "--yes", *kubeconfig, code=1)
    live.leases.give_free("models", "digits", live.owner("run-1"))
    live.fault("get", status=503)
    assert "answered 503" in run("prune", "digits", "--yes", *kubeconfig, code=1)
    assert len(store.versions()) == 2


def test_sign_lets_a_version_be_staged(run: Run, store: Store, publish: Any, tmp_path: Path, keys: Any) -> None:
    keys("a")
    version = publish(1)
    with pytest.raises(SignatureRefused, match=f"python -m model_release sign MODEL {version}"):
        signing.check_version(store, version, tmp_path / "a.pub")
    assert run("sign", "digits", version).endswith(f"versions/{version}/ is signed by {tmp_path / 'a.pem'}\n")
    tag = store.tag(f"signatures/{version}.json")
    run("sign", "digits", version)
    assert store.tag(f"signatures/{version}.json") == tag
    assert signing.check_version(store, version, tmp_path / "a.pub").name == version


def test_where_s3_is(s3: Any, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a connection's URI, by the sandbox's folder, by boto3's own environment; and what is no connection."""
    extra = quote(json.dumps({"endpoint_url": s3.endpoint, "region_name": "us-east-1"}), safe="")
    query = f"endpoint_url={quote(s3.endpoint, safe='')}&region_name=us-east-1"
    for uri in (f"aws://key:secret@/?{query}", f"aws://key:secret@/?__extra__={extra}"):
        monkeypatch.setenv("AIRFLOW_CONN_MODEL_STORE", uri)
        assert "0 releases" in run("reindex", "digits")
    connection = {"conn_type": "aws", "login": "key", "password": "secret", "extra": {"endpoint_url": s3.endpoint}}
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    (tmp_path / "connections.json").write_text(json.dumps({"AIRFLOW_CONN_MODEL_STORE": json.dumps(connection)}))
    monkeypatch.setenv("AIRFLOW_CONN_MODEL_STORE", "aws://nobody:wrong@/")
    assert "0 releases" in run("reindex", "digits", "--sandbox-state", str(tmp_path))
    assert "no sandbox was ever started in /no/such" in run("reindex", "digits", "--sandbox-state", "/no/such", code=1)
    monkeypatch.delenv("AIRFLOW_CONN_MODEL_STORE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "0 releases" in run("reindex", "digits", "--endpoint-url", s3.endpoint)
    assert "no S3 to talk to" in run("reindex", "digits", "--endpoint-url", "nonsense", code=1)
    for text in ("{", "no uri", '{"extra": "{"}', '{"extra": "[1]"}', '{"extra": 7}', '["extra"]'):
        monkeypatch.setenv("AIRFLOW_CONN_MODEL_STORE", text)
        assert "neither a connection's JSON nor its URI" in run("reindex", "digits", code=1)
    monkeypatch.setenv("AIRFLOW_CONN_MODEL_STORE", '{"extra": {"role_arn": "arn:aws:iam::1:role/r"}}')
    assert "extra: 'role_arn' is for Airflow alone" in run("reindex", "digits", code=1)
    monkeypatch.setenv("AIRFLOW_CONN_MODEL_STORE", '{"extra": {"profile_name": "nobodys"}}')
    assert "no S3 to talk to: The config profile (nobodys) could not be found" in run("reindex", "digits", code=1)


def test_the_sandbox_says_where_the_cluster_is(tmp_path: Path) -> None:
    import argparse

    options = argparse.Namespace(sandbox=tmp_path, kubeconfig=None)
    surroundings.settle_sandbox(options)
    assert options.kubeconfig == tmp_path / "kubeconfig.yaml"
    with pytest.raises(SpecError, match="no cluster to talk to"):
        surroundings.cluster(options.kubeconfig)


@pytest.mark.parametrize("words", [("versions", "letters"), ("prune", "letters"), ("reindex", "letters")])
def test_a_model_that_there_is_none_of(run: Run, words: tuple[str, ...]) -> None:
    assert re.search(r"'letters' is no model of \S+/models \(digits\)", run(*words, code=1))


@pytest.mark.parametrize("number", ["0", "-1", "x", "²", "999999"])
def test_a_number_that_is_none(run: Run, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    """999 999 days ago there was no date."""
    with pytest.raises(SystemExit):
        run("prune", "digits", "--builds-days", number)
    assert f"{number}: write a number from 1 to 100000" in capsys.readouterr().err


def test_a_record_stays_a_record() -> None:
    """The names of FATES are the outcomes of records: a new outcome needs a word here."""
    from model_release.judging.record import OUTCOMES
    from model_release.release.versions import FATES

    assert set(FATES) == {None, *OUTCOMES}
    assert Record.new("r", model="m", service="n/s", version=None, started=ago(0)).outcome in FATES
