"""A typed view of one InferenceService as the API gives it.

The view interprets nothing that KServe leaves open: an absent field is None, an empty dict or an empty tuple, never
a guess. What the fields mean, and which of them must not be trusted: docs/facts.md#status-fields.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from model_release.cluster.objects import FIELD_MANAGER

# Knative's own words for a revision that keeps a Route as it was: it is there, and not ready (any more).
_NOT_READY = re.compile(r'Revision "([^"]+)" failed to become ready')

# KServe deletes what serves, and starts anew when it is gone or false.
STOP = "serving.kserve.io/stop"
# Whose release created it: its uid is known only when the API server has answered.
MADE_BY = "model-release/created-by"

Template = dict[str, Any]


@dataclass(frozen=True)
class Condition:
    """One of `status.conditions`. `status` is True, False or Unknown, as text."""

    status: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True)
class ModelStatus:
    """`status.modelStatus`. `failure` may be of long ago: KServe never clears it; `transition` says what holds now."""

    transition: str  # "", UpToDate, InProgress, BlockedByFailedLoad, InvalidSpec
    target: str  # "", Pending, Standby, Loading, Loaded, FailedToLoad
    failure: str
    exit_code: int | None


@dataclass(frozen=True)
class Edit:
    """One entry of managedFields: who set which fields, and when it last did."""

    manager: str
    time: str
    fields: tuple[str, ...]  # spec.predictor.canaryTrafficPercent


@dataclass(frozen=True)
class InferenceService:
    """One InferenceService at one moment."""

    raw: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def resource_version(self) -> str:
        return str(self.raw["metadata"]["resourceVersion"])

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.raw["metadata"].get("annotations") or {})

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.raw["metadata"].get("labels") or {})

    @property
    def made_by(self) -> str:
        """Whose release created it; empty where none did."""
        return self.annotations.get(MADE_BY, "")

    @property
    def being_deleted(self) -> bool:
        return "deletionTimestamp" in self.raw["metadata"]

    @property
    def template(self) -> Template:
        """`spec.predictor` without the split: what makes a revision."""
        predictor = self.raw.get("spec", {}).get("predictor", {})
        return {key: value for key, value in predictor.items() if key != "canaryTrafficPercent"}

    @property
    def template_digest(self) -> str:
        """Short name of the template's content; equal templates have equal ones."""
        return hashlib.sha256(json.dumps(self.template, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def storage_uri(self) -> str | None:
        return _text(self.template.get("model", {}).get("storageUri"))

    @property
    def canary_percent(self) -> int | None:
        """What the spec asks for. What is served, is `serving`."""
        percent = self.raw.get("spec", {}).get("predictor", {}).get("canaryTrafficPercent")
        return None if percent is None else int(percent)

    @property
    def is_split(self) -> bool:
        """Whether the spec keeps a part of the traffic off the latest revision; 100 is the same as no field."""
        return self.canary_percent is not None and self.canary_percent < 100

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.raw.get("status") or {})

    @property
    def _predictor(self) -> dict[str, Any]:
        return dict((self.status.get("components") or {}).get("predictor") or {})

    @property
    def latest_created(self) -> str | None:
        return _text(self._predictor.get("latestCreatedRevision"))

    @property
    def latest_ready(self) -> str | None:
        return _text(self._predictor.get("latestReadyRevision"))

    @property
    def rolled_out(self) -> str | None:
        """The last revision that had 100 %: where KServe sends what the canary does not get."""
        return _text(self._predictor.get("latestRolledoutRevision"))

    @property
    def previous_rolled_out(self) -> str | None:
        """The one before it: where a late roll-back goes. Not where the rest of a split goes."""
        return _text(self._predictor.get("previousRolledoutRevision"))

    @property
    def _targets(self) -> list[dict[str, Any]]:
        return [target for target in self._predictor.get("traffic") or [] if target.get("revisionName")]

    @property
    def traffic(self) -> dict[str, int]:
        """Percent of each revision named in the split; one that is named twice counts once, with the sum."""
        shares: dict[str, int] = {}
        for target in self._targets:
            revision = str(target["revisionName"])
            shares[revision] = shares.get(revision, 0) + int(target.get("percent") or 0)
        return shares

    @property
    def serving(self) -> dict[str, int]:
        """`traffic` without those that get none."""
        return {revision: percent for revision, percent in self.traffic.items() if percent}

    @property
    def gateway(self) -> dict[str, int] | None:
        """`serving`, where the gateway is known to have just that; None while it may have the old split or the new one.

        Knative says that a Route is ready once the gateway has taken its very generation. One that is frozen by a dead
        revision stays as the gateway had it. (Its Ingress says the same one step earlier, and would need one right
        more: Knative keeps it for itself.)
        """
        route = self.conditions.get("PredictorRouteReady")
        known = route is not None and (route.status == "True" or self.frozen_by is not None)
        return self.serving if known else None

    @property
    def frozen_by(self) -> str | None:
        """The revision that is dead, and for which the whole route stands still, whatever shares are written."""
        route = self.conditions.get("PredictorRouteReady")
        found = _NOT_READY.search(route.message) if route is not None and route.status == "False" else None
        return found[1] if found else None

    @property
    def is_stopped(self) -> bool:
        """Whether KServe was told to take it down (annotation serving.kserve.io/stop), or has."""
        said = self.conditions.get("Stopped")
        return (said is not None and said.status == "True") or self.annotations.get(STOP, "").lower() == "true"

    @property
    def started(self) -> str | None:
        """When it was made or last started, as KServe's condition Stopped has it: revisions count from 00001 since
        then. None: it does not say so (yet), or is stopped now."""
        said = self.conditions.get("Stopped")
        return said.since or None if said is not None and said.status == "False" else None

    @property
    def prev_revision(self) -> str | None:
        """The revision that takes the rest of the split; None when there is no split."""
        return next((str(target["revisionName"]) for target in self._targets if target.get("tag") == "prev"), None)

    @property
    def stable_revision(self) -> str | None:
        """The revision that is no canary: the one that has the rest of a split, or was rolled out last."""
        return (self.prev_revision if self.is_split else None) or self.rolled_out

    def tag_url(self, tag: str) -> str | None:
        """The address that reaches one target whatever its percent, 0 included. Needs enable-tag-routing."""
        return next((_text(target.get("url")) for target in self._targets if target.get("tag") == tag), None)

    @property
    def url(self) -> str | None:
        return _text(self.status.get("url"))

    @property
    def conditions(self) -> dict[str, Condition]:
        return {
            str(given["type"]): Condition(
                status=str(given.get("status", "Unknown")),
                reason=str(given.get("reason", "")),
                message=str(given.get("message", "")),
                since=str(given.get("lastTransitionTime", "")),
            )
            for given in self.status.get("conditions") or []
        }

    @property
    def ready(self) -> bool:
        """Condition Ready. Unknown during each roll-out, though the old revision serves: no test of a roll-back."""
        return "Ready" in self.conditions and self.conditions["Ready"].status == "True"

    @property
    def deployment_mode(self) -> str | None:
        """Knative, Standard or ModelMesh, in today's words; None until KServe has said so."""
        given = self.status.get("deploymentMode") or self.annotations.get("serving.kserve.io/deploymentMode")
        return {"Serverless": "Knative", "RawDeployment": "Standard"}.get(str(given), _text(given))

    @property
    def model_status(self) -> ModelStatus:
        given = self.status.get("modelStatus") or {}
        failure = given.get("lastFailureInfo") or {}
        return ModelStatus(
            transition=str(given.get("transitionStatus") or ""),
            target=str((given.get("states") or {}).get("targetModelState") or ""),
            failure=" ".join(str(failure.get("message") or failure.get("reason") or "").split()),
            exit_code=failure.get("exitCode"),
        )

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """Who wrote metadata and spec, oldest first; writes of status are left out."""
        entries = [entry for entry in self.raw["metadata"].get("managedFields") or [] if not entry.get("subresource")]
        edits = (
            Edit(str(entry["manager"]), str(entry.get("time", "")), tuple(_paths(entry.get("fieldsV1") or {})))
            for entry in entries
        )
        return tuple(sorted(edits, key=lambda edit: edit.time))

    def other_writer(self) -> str:
        """`, last changed by kubectl-edit at … (spec.predictor…)`, or nothing when only we are on record."""
        others = [edit for edit in self.edits if edit.manager != FIELD_MANAGER and _touches_spec(edit)]
        if not others:
            return ""
        last = others[-1]
        fields = [field for field in last.fields if field.startswith("spec.")]
        shown = ", ".join(fields[:3]) + (f" and {len(fields) - 3} more" if len(fields) > 3 else "")
        return f", last changed by {last.manager} at {last.time} ({shown})"


def _touches_spec(edit: Edit) -> bool:
    return any(field.startswith("spec.") for field in edit.fields)


def _paths(fields: dict[str, Any], above: str = "") -> list[str]:
    """The leaves of fieldsV1 as dotted paths."""
    paths: list[str] = []
    for key, below in fields.items():
        if key == ".":
            continue
        path = f"{above}.{key.removeprefix('f:')}" if above else key.removeprefix("f:")
        deeper = _paths(below, path) if isinstance(below, dict) else []
        paths += deeper or [path]
    return paths


def _text(value: object) -> str | None:
    return str(value) if value else None
