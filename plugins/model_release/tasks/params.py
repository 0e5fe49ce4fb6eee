"""The form that starts a run. Everything in it is optional, and everything in it is only data: patterns keep it to
what can be meant, and no value ever becomes part of a shell, a query or a manifest's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Param

VERSION_PATTERN = "^[0-9a-f]{16}$"
REVISION_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._/-]*$"


def form(versions: Sequence[str] = (), plan: Sequence[str] = ()) -> dict[str, Any]:
    """The Params of a release DAG. `versions` are suggested; others may be named. `plan`: what the last one said."""
    planned = f" The last preflight said of a canary: {' '.join(plan)}" if plan else ""
    return {
        "version": Param(
            None,
            type=["null", "string"],
            pattern=VERSION_PATTERN,
            examples=list(versions),
            title="Version",
            description="Release this version from the store again, without building. "
            "Empty: build the newest candidate of the source.",
        ),
        "revision": Param(
            None,
            type=["null", "string"],
            pattern=REVISION_PATTERN,
            maxLength=100,
            title="Revision",
            description="Build this commit, branch or tag of the hub, or the candidate in the folder of this name, "
            "instead of the newest.",
        ),
        "rollout": Param(
            "auto",
            type="string",
            enum=["auto", "canary", "none", "direct"],
            values_display={
                "auto": "auto: canary; none for a backfill",
                "canary": "canary: move live traffic, step by step",
                "none": "none: build and publish only",
                "direct": "direct: all traffic at once, for a version that was live before; needs a note",
            },
            title="Roll-out",
            description=f"What becomes of the version once it is published.{planned}",
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
