"""Releases as short words, for tests."""

from __future__ import annotations

from typing import Any

from model_release.cluster.change import Baseline
from model_release.cluster.release import Owner, Phase, Release

OWNER = Owner("release_digits", "run-1", "http://airflow/runs/run-1", "laptop")


def left(
    namespace: str, name: str, baseline: Baseline, canary: str | None = None, *, promoted: bool = False, **more: Any
) -> Release:
    """What a release left behind, for whoever settles it."""
    phase = Phase.PROMOTED if promoted else Phase.OPEN
    return Release(OWNER, phase=phase, namespace=namespace, name=name, baseline=baseline, canary=canary, **more)
