"""A hub of each test's own, and the ways to ask it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from model_release.build.hub import HubAccess
from model_release.build.source import Checkpoint, fetch
from sandbox.hub import Hub

from .builders import SOURCE, Fetch


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def access(hub: Hub, tmp_path: Path) -> HubAccess:
    return HubAccess(endpoint=hub.url, home=tmp_path / "home")


@pytest.fixture
def get(access: HubAccess, tmp_path: Path) -> Fetch:
    def get(source: dict[str, str] = SOURCE, **more: Any) -> Checkpoint:
        return fetch(source, tmp_path / "checkpoint", **{"hub": access, **more})

    return get


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """offline(): as if HF_HUB_OFFLINE=1 had been set before the start."""
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """huggingface_hub's pauses between two tries, written down instead of slept."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses
