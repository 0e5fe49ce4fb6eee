"""The form that starts a run. Everything in it is optional, and everything in it is only data: patterns keep it to
what can be meant, and no value ever becomes part of a shell, a query or a manifest's text."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param

VERSION_PATTERN = "^[0-9a-f]{16}$"


def form() -> dict[str, Any]:
    """The Params of a release DAG."""
    return {
        "version": Param(
            None,
            type=["null", "string"],
            pattern=VERSION_PATTERN,
            title="Version",
            description="Release this version from the store again, without building. "
            "Empty: build the newest candidate of the source.",
        ),
        "rollout": Param(
            "auto",
            type="string",
            enum=["auto", "canary", "none"],
            values_display={
                "auto": "auto: canary; none for a backfill",
                "canary": "canary: move live traffic",
                "none": "none: build and publish only",
            },
            title="Roll-out",
            description="What becomes of the version once it is published.",
        ),
        "note": Param(
            None,
            type=["null", "string"],
            maxLength=1000,
            format="multiline",
            title="Note",
            description="Why this release; kept in its decision record.",
        ),
    }
