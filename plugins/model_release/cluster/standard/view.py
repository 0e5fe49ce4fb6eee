"""An InferenceService in Standard mode, told in the words that Knative mode has.

A revision is a predictor: its Deployment and Service `<service>-<name>-predictor`. The stable one is `spec.predictor`,
the canary is the entry of `spec.canary`. KServe's status repeats the percent of the spec; who gets which share is read
from the HTTPRoutes (docs/facts.md#standard-mode).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from model_release.cluster.inference_service import InferenceService, ModelStatus, Template
from model_release.cluster.manifest import merge
from model_release.cluster.standard import routes

if TYPE_CHECKING:
    from model_release.cluster.objects import CustomObjects
    from model_release.cluster.standard.pods import Pods

# Fields of the service's size, not of a predictor's content: KServe keeps them out of a canary, and they change
# without a restart.
SCALING = ("minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling")


@dataclass(frozen=True)
class StandardService(InferenceService):
    """One InferenceService in Standard mode, with its HTTPRoutes as they were read right after it.

    `failure`: the last words and the exit code of a canary that does not come up, as far as its pods say.
    """

    routes: tuple[dict[str, Any], ...] = ()
    failure: tuple[str, int | None] | None = None

    def service_of(self, name: str | None) -> str:
        """The Deployment and Service of the predictor of that name."""
        return f"{self.name}-{name}-predictor" if name else f"{self.name}-predictor"

    @property
    def canaries(self) -> list[dict[str, Any]]:
        return list(self.raw.get("spec", {}).get("canary") or [])

    @property
    def entry(self) -> dict[str, Any] | None:
        """The entry of `spec.canary` that is looked at. Ours is the only one; `check_untouched` sees to that."""
        return next(iter(self.canaries), None)

    @property
    def stable(self) -> str:
        return self.service_of(self.stable_template.get("name"))

    @property
    def stable_template(self) -> Template:
        """`spec.predictor`, without the field that means nothing in this mode."""
        return super().template

    @property
    def template(self) -> Template:
        """The newest predictor: the canary laid over stable, as KServe does, or stable when there is none."""
        entry = self.entry
        if entry is None:
            return self.stable_template
        over = {key: value for key, value in entry["predictor"].items() if key not in SCALING}
        merged: Template = merge(self.stable_template, over)
        return merged

    @property
    def template_digest(self) -> str:
        """`newest`, or `newest/stable` beside a canary: a hand on either of them shows."""
        entry = [self.stable_template] if self.entry is not None else []
        return "/".join(map(_digest, [self.template, *entry]))

    @property
    def canary_percent(self) -> int | None:
        entry = self.entry
        return None if entry is None else int(entry.get("trafficPercent") or 0)

    @property
    def latest_created(self) -> str:
        entry = self.entry
        return self.stable if entry is None else self.service_of(entry["predictor"].get("name"))

    @property
    def latest_ready(self) -> str | None:
        return self.latest_created if self.entry is not None and self.canary_is_ready else self.rolled_out

    @property
    def canary_is_ready(self) -> bool | None:
        """Whether a replica of the canary is available, by its name in `status.canaryStatuses`; None: not told yet."""
        name = (self.entry or {}).get("predictor", {}).get("name")
        told = (one for one in self.status.get("canaryStatuses") or [] if one.get("name") == name)
        return next((bool(one.get("ready")) for one in told), None)

    @property
    def stable_is_ready(self) -> bool:
        """Condition PredictorReady. While it is not True, KServe leaves the HTTPRoutes as they are."""
        found = self.conditions.get("PredictorReady")
        return found is not None and found.status == "True"

    @property
    def rolled_out(self) -> str | None:
        """The stable predictor, once this service was ready for the first time: only then KServe tells its address."""
        return self.stable if self._predictor.get("url") or self.stable_is_ready else None

    @property
    def previous_rolled_out(self) -> str | None:
        """None: what was stable before is deleted by a promotion."""
        return None

    @property
    def is_at_rest(self) -> bool:
        """Whether KServe has done all that a service without a canary needs: nobody else is in status or route."""
        return self.entry is None and not self.status.get("canaryStatuses") and len(self.traffic) == 1

    @property
    def traffic(self) -> dict[str, int]:
        """Percent of each predictor in the HTTPRoutes, once the gateway has taken them; empty before that."""
        return routes.shares(self.routes)

    @property
    def gateway(self) -> dict[str, int] | None:
        return self.serving or None

    @property
    def frozen_by(self) -> str | None:
        """The dead stable predictor: KServe then leaves the HTTPRoutes as they are. A canary never holds them."""
        return self.stable if self.entry is not None and self.rolled_out and not self.stable_is_ready else None

    @property
    def prev_revision(self) -> str | None:
        return None if self.entry is None else self.stable

    def tag_url(self, tag: str) -> str | None:
        """The address of a predictor's own Service inside of the cluster, whatever its share is."""
        name = {"latest": self.latest_created, "prev": self.prev_revision}.get(tag)
        return f"http://{name}.{self.namespace}.svc.cluster.local" if name else None

    @property
    def model_status(self) -> ModelStatus:
        """KServe's own is of the stable predictor; a canary's is told from whether it is ready, and from its pods."""
        told = super().model_status
        if self.entry is None or told.transition == "InvalidSpec":
            return told
        if self.canary_is_ready:
            return ModelStatus("UpToDate", "Loaded", "", None)
        if self.failure is not None:
            return ModelStatus("BlockedByFailedLoad", "FailedToLoad", *self.failure)
        return ModelStatus("InProgress", "Pending", "", None)


def in_its_mode(raw: dict[str, Any], http_routes: CustomObjects, pods: Pods | None) -> InferenceService:
    """The view for what the API gave. Reads the service's HTTPRoutes, when it is in Standard mode, and the pods of a
    canary that is not ready; without `pods` nobody asks those why.

    Raises:
        ClusterRefused: they may not be read, or there is no Gateway API: nobody could tell where the traffic goes.
    """
    live = InferenceService(raw)
    if live.deployment_mode != "Standard":
        return live
    # The service's own address, and that of its predictor: users may come by either.
    found = [http_routes.get(live.namespace, name) for name in (live.name, f"{live.name}-predictor")]
    seen = StandardService(raw, tuple(one for one in found if one is not None))
    if seen.entry is None or seen.canary_is_ready or pods is None:
        return seen
    return replace(seen, failure=pods.failure(live.namespace, seen.latest_created))


def _digest(template: Template) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]
