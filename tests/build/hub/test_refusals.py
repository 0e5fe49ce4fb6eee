"""What the hub says no to, and when it does not answer: one line each, and never a token in it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from model_release.build import hub_talk
from model_release.build.hub import HubAccess
from model_release.errors import CheckpointError, SourceUnavailable, SpecError
from sandbox.hub import Hub

from .builders import MONDAY, NAME, SOURCE, TOKEN, Fetch, asked, checkpoint


def test_private_and_unknown(hub: Hub, get: Fetch, access: HubAccess) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    hub.protect(NAME, token=TOKEN)
    for source in (SOURCE, {"hub": "nobody/nothing"}):
        with pytest.raises(CheckpointError) as refused:
            get(source)
        assert str(refused.value) == (
            f"{hub.url}/{source['hub']} is private or does not exist: mend the name, or set a token as password of the "
            "Airflow connection `hub`, or as HF_TOKEN (401)"
        )
    with pytest.raises(CheckpointError, match=r"is private or does not exist.*\(404\)") as refused:
        get(hub=HubAccess(access.endpoint, "hf_another", access.home))
    assert "hf_another" not in str(refused.value)
    found = get(hub=HubAccess(access.endpoint, TOKEN, access.home))
    assert TOKEN not in repr(HubAccess(token=TOKEN))
    assert TOKEN not in str(found)
    answered = [one.headers.get("authorization") for one in hub.requests if one.status == 200 and not one.store]
    assert set(answered) == {f"Bearer {TOKEN}"}
    # The store for large files has a link of its own, and must not see the token.
    assert [one.headers.get("authorization") for one in hub.requests if one.store] == [None]


def test_a_token_is_not_sent_to_an_endpoint_that_it_is_not_for(
    hub: Hub, get: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    get()
    assert {one.headers.get("authorization") for one in hub.requests} == {None}


def test_gated(hub: Hub, get: Fetch) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    hub.protect(NAME, gated=True)
    with pytest.raises(CheckpointError, match=r"config.json is open only to those whom its owner lets in: accept"):
        get()


@pytest.mark.parametrize("where", ["/commits/", "/refs", "/tree/", "/resolve/", "signature"])
def test_the_hub_fails(where: str, hub: Hub, get: Fetch, no_waiting: list[float]) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first", branch="other")
    hub.answer_with(503, where, times=99)
    with pytest.raises(SourceUnavailable, match=r"the hub fails for now \(503\)"):
        get({**SOURCE, "revision": "other"})


def test_a_hub_that_asks_for_a_pause_gets_it(hub: Hub, get: Fetch, no_waiting: list[float]) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    hub.answer_with(429, "/commits/", headers={"Retry-After": "30"})
    hub.answer_with(429, "signature", headers={"Retry-After": "40"})
    assert get().commit
    assert no_waiting == [31, 41]
    hub.answer_with(429, "/commits/", headers={"Retry-After": "30"}, times=99)
    with pytest.raises(SourceUnavailable, match=r"has been asked too often; it may be asked again in 30 s \(429\)"):
        get()
    assert SourceUnavailable.transient


def test_no_hub_there(hub: Hub, get: Fetch, access: HubAccess, no_waiting: list[float]) -> None:
    hub.stop()
    with pytest.raises(SourceUnavailable, match=r"the hub does not answer: .*[Cc]onnect") as error:
        get(hub=HubAccess(access.endpoint, TOKEN, access.home))
    assert TOKEN not in str(error.value)


def test_a_hub_that_never_answers_is_not_waited_for(
    get: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]
) -> None:
    monkeypatch.setattr(hub_talk, "PATIENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(SourceUnavailable, match="does not answer"):
        get(hub=HubAccess(f"http://127.0.0.1:{silent.getsockname()[1]}", home=tmp_path / "home"))


def test_something_else_answers(hub: Hub, get: Fetch) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    hub.answer_with(200, "/commits/")
    with pytest.raises((SourceUnavailable, CheckpointError), match=f"{hub.url}/{NAME}"):
        get()


OWN_CODE = b'{"auto_map": {"AutoImageProcessor": "own.Own"}}'
REFUSED: dict[str, tuple[dict[str, bytes | None], str]] = {
    "own code": ({"config.json": checkpoint(auto_map={"A": "own.Own"})["config.json"]}, "config.json has auto_map"),
    "own processor": ({"preprocessor_config.json": OWN_CODE}, "preprocessor_config.json has auto_map"),
    "pickled only": ({"model.safetensors": None}, "only in pytorch_model.bin, a format that can run code"),
    "no config": ({"config.json": None}, "lacks config.json$"),
    "no processor": ({"preprocessor_config.json": None}, "lacks preprocessor_config.json$"),
    "text model": ({"config.json": checkpoint(architectures=["BertModel"])["config.json"]}, "is no image classifier"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_line_and_nothing_left(name: str, hub: Hub, get: Fetch, tmp_path: Path) -> None:
    changes, reason = REFUSED[name]
    content = {path: data for path, data in {**checkpoint(), **changes}.items() if data is not None}
    commit = hub.add_commit(NAME, content, MONDAY, name)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        get()
    assert f"{NAME}@{commit}" in str(refusal.value)
    assert not (tmp_path / "checkpoint").exists()
    assert not asked(hub, "pytorch_model")
    assert not asked(hub, "modeling_own")


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://hub", "https://me:secret@hub", "https://"])
def test_an_address_that_is_none(endpoint: str, get: Fetch) -> None:
    with pytest.raises(SpecError, match=r"has to be like https://huggingface\.co, without user or password") as error:
        get(hub=HubAccess(endpoint))
    assert "secret" not in str(error.value)
