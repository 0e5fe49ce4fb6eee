"""The two modes of KServe behind one protocol: the only place that asks which one a service is in.

A mode is a module of verbs over the service as its own view sees it. What a verb means, and what the modes share, is in
`cluster.rollout` (the way forward) and `cluster.settle` (the way back). To add a mode: a view of the service, a package
with these functions, and a line in `mode_of` and in `mode_named`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from model_release.cluster import knative, standard
from model_release.cluster.change import ANY, Baseline, Canary, Change, Prove, Remember
from model_release.cluster.inference_service import InferenceService, Template
from model_release.cluster.manifest import Manifest
from model_release.cluster.progress import Progress
from model_release.cluster.release import Release
from model_release.cluster.standard.view import StandardService

if TYPE_CHECKING:
    from model_release.cluster.services import InferenceServices

V = TypeVar("V", bound=InferenceService, contravariant=True)


class Mode(Protocol[V]):
    """What each mode does in its own way."""

    # The way forward
    def plan_change(self, live: V, wanted: Manifest) -> Change: ...
    def baseline_of(self, live: V, wanted: Manifest, known: Baseline | None) -> Baseline: ...
    def stable_template(self, live: V, known: Baseline | None) -> Template | None: ...
    def has_staged(self, live: V, wanted: Manifest) -> bool: ...
    def stage_patch(self, live: V, wanted: Manifest, change: Change, *, first: bool) -> dict[str, Any] | None: ...
    def check_kept(self, dry_run: Callable[[], InferenceService], wanted: Manifest) -> None: ...
    def assess_staged(self, live: V, wanted: Manifest, baseline: Baseline) -> Progress: ...
    def split(self, live: V, percent: int) -> dict[str, Any]: ...
    def promotion(self, live: V) -> dict[str, Any] | None: ...
    def assess_promoted(self, live: V, canary: Canary) -> Progress: ...
    def check_untouched(self, live: V, canary: Canary, percent: int | None = ANY) -> None: ...
    def death_of(self, live: V, canary: str) -> str | None: ...

    # The way back
    def step(
        self, services: InferenceServices, live: V, release: Release, remember: Remember, prove: Prove | None
    ) -> Progress: ...
    def stopped(self, services: InferenceServices, live: V, release: Release, told: str) -> Progress | None: ...
    def is_clean(self, live: V, release: Release) -> bool: ...
    def assess_rolled_back(self, live: V, release: Release) -> Progress: ...


KNATIVE: Mode[InferenceService] = knative
STANDARD: Mode[StandardService] = standard


def mode_of(live: InferenceService) -> Mode[Any]:
    """The mode of a service that is there, by how it was read."""
    return STANDARD if isinstance(live, StandardService) else KNATIVE


def mode_named(name: str) -> Mode[Any]:
    """The mode that a manifest asks for (`manifest.mode_of`)."""
    return STANDARD if name == "Standard" else KNATIVE
