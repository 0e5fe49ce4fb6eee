"""The Airflow assets of this project: what a training hands to a release."""

from __future__ import annotations

from airflow.sdk import Asset

from model_release.spec import ModelSpec


def candidate_asset(spec: ModelSpec) -> Asset:
    """The model's candidates. Each event is one of them and has in its `extra`: `candidate` (the folder's name),
    `origin` (where it lies), `digest` (SHA-256, as `build.source` computes a checkpoint's fingerprint), `metrics` (a
    number by name) and `duration` (seconds of training).

    The URI is the project's own: two models may share a source, and Airflow wants one asset for each URI.
    """
    return Asset(
        name=f"candidate_{spec.model}",
        uri=f"x-model-release://candidates/{spec.model}",
        group="model-release",
        extra={"source": str(spec.source)},
    )
