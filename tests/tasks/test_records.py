"""The decision record in the store, when it is none."""

from __future__ import annotations

from typing import Any

import pytest

from model_release.errors import VersionDamaged
from model_release.spec import ModelSpec
from model_release.tasks import connections, records, sweep
from model_release.tasks.run import Run

from .test_registry import Store


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"format": 2}, "format: 2 is unknown"),
        ({"format": 1, "release": "digits-other", "model": "", "service": "", "started": ""}, "is another one's name"),
        ([], "a mapping is expected here"),
    ],
)
def test_a_record_that_is_none_is_one_line_for_each_task(
    content: Any, why: str, spec: ModelSpec, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a newer edition is, when this one was put back in its place. A sweep that met one, of whatever service,
    came to no other."""
    store, run = Store(), Run.of(context, spec)
    monkeypatch.setattr(connections, "store", lambda _: store)
    store.write_json(f"releases/{run.release}.json", content, if_match=None)
    for ask in (
        lambda: records.read(spec, run),
        lambda: records.change(spec, run, lambda _: None),
        lambda: sweep._amend("s3://models/digits/", run.release, lambda _: None),
    ):
        with pytest.raises(
            VersionDamaged, match=f"s3://models/digits/releases/{run.release}.json is no decision"
        ) as no:
            ask()
        assert why in str(no.value)
    assert store.kept[f"releases/{run.release}.json"][0] == content
