"""What a version that came to serve should answer: found by its storage URI, in whichever store it names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from model_release.errors import SmokeFailed, StoreUnavailable
from model_release.tasks import connections, proof


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://models/digits/versions/0123456789abcdef/", ("s3://models/digits/", "0123456789abcdef")),
        ("s3://models/digits/versions/0123456789abcdef", None),
        ("s3://elsewhere/versions/0123456789abcdef/", ("s3://elsewhere/", "0123456789abcdef")),
        ("gs://elsewhere/versions/0123456789abcdef/", ("gs://elsewhere/", "0123456789abcdef")),
        ("pvc://elsewhere/versions/0123456789abcdef/", None),
        ("s3://models/digits/versions/../x/", None),
        (None, None),
    ],
)
def test_which_version_a_storage_uri_names(uri: str | None, found: object) -> None:
    assert proof.version_in(uri) == found


def test_a_version_of_another_model_of_the_service_is_asked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several models may share one service: what served before this one's release lies in another's store."""
    stores: list[str] = []

    def away(store: str) -> Any:
        stores.append(store)
        raise StoreUnavailable("S3 does not answer")

    monkeypatch.setattr(connections, "store", away)
    live: Any = SimpleNamespace(latest_created="digits-predictor-00003")
    with pytest.raises(SmokeFailed):
        proof.prover("s3://models/letters/versions/0123456789abcdef/", lambda *_: None)(live)
    assert stores == ["s3://models/letters/"]


def test_a_version_whose_answers_cannot_be_read_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: str) -> Any:
        raise StoreUnavailable("S3 does not answer")

    monkeypatch.setattr(connections, "store", away)
    lines: list[str] = []

    def log(text: str, *said: object) -> None:
        lines.append(text % said)

    live: Any = SimpleNamespace(latest_created="digits-predictor-00003")
    with pytest.raises(SmokeFailed, match="what version 0123456789abcdef should answer cannot be read: S3 does not"):
        proof.prover("s3://models/digits/versions/0123456789abcdef/", log)(live)
    assert lines == []
    proof.prover("pvc://elsewhere/model/", log)(live)
    unasked = "pvc://elsewhere/model/ is of no store of this project: nobody knows what it should answer"
    assert lines == [f"{unasked}, and it is not asked"]
