"""A revision that was ready and is not any more: who is dead, what that holds up, and how a dead canary is let go.

Knative leaves a route as it was, whatever percents are written, as long as one revision that the split names is not
ready. So the brake of a dead canary is 0 % **and** the deletion of its failed Revision: its Configuration then falls
back to the revision that was ready before, the route is free within half a second, and the deleted one is made anew,
at 0 %. In Standard mode KServe takes a dead canary out of the routes by itself, and gives it its share back when it
heals.

Seen on the real controllers: recordings crash, crash-freed, stable-crashes, standard-crash in tests/data/real.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from model_release.errors import ClusterRefused
from model_release.serving.change import Release
from model_release.serving.progress import Progress, State
from model_release.serving.standard.view import StandardService

if TYPE_CHECKING:
    from model_release.serving.inference_service import InferenceService, InferenceServices

# Knative's own words for a revision that its Route names and that is there; one that is gone "was not found".
_NOT_READY = re.compile(r'Revision "([^"]+)" failed to become ready')
# And those of its Configuration, with the last words of the container.
_FAILED = re.compile(r'Revision "([^"]+)" failed with message: (.*)', re.DOTALL)


def frozen_by(live: InferenceService) -> str | None:
    """The revision for which the whole route stands still; None when it does not, or for another reason."""
    if isinstance(live, StandardService):
        # The stable predictor's Deployment holds the HTTPRoutes; a canary never does.
        return live.stable if live.entry is not None and not live.stable_is_ready else None
    route = live.conditions.get("PredictorRouteReady")
    if route is None or route.status != "False":
        return None
    found = _NOT_READY.search(route.message)
    return found[1] if found else None


def tell_frozen(live: InferenceService) -> str:
    """A sentence for whoever waits for a share that does not come; nothing when the route is free."""
    dead = frozen_by(live)
    if dead is None:
        return ""
    if dead == live.latest_created:
        return (
            f"the route is frozen by the canary {dead}, which is not ready: no share acts until it heals or is deleted"
        )
    return f"the route is frozen by {dead}, which is not ready: no share acts until it heals; a promotion would"


def death_of(live: InferenceService | None, canary: str) -> str | None:
    """A sentence, when the canary of that name was ready and is not any more; None while it lives."""
    if live is None or live.latest_created != canary:
        return None
    if isinstance(live, StandardService):
        if live.entry is None or live.canary_is_ready:
            return None
        said = live.failure[0] if live.failure else "no replica of it is available"
        return f"{canary} is dead: {said}"
    if frozen_by(live) != canary:
        return None
    configuration = live.conditions.get("PredictorConfigurationReady")
    found = _FAILED.search(configuration.message) if configuration is not None else None
    said = " ".join(found[2].split()) if found and found[1] == canary else "its revision is not ready any more"
    return f"{canary} is dead: {said}"


def let_go(services: InferenceServices, live: InferenceService, release: Release) -> Progress | str | None:
    """Deletes the dead canary's Revision, where 0 % is written and the route is frozen by it. Again: one that was made
    anew is deleted only when it fails and holds the route, too.

    Returns a Progress when it was deleted; a sentence when that is refused, so that the caller's own way goes on; None
    when there is nothing to let go.
    """
    dead = frozen_by(live)
    if dead is None or isinstance(live, StandardService) or dead != live.latest_created or live.canary_percent != 0:
        return None
    if dead == release.baseline.revision or release.canary not in (None, dead):
        return None
    try:
        revision = services.revision(live.namespace, dead)
        if revision is None or _is_ready(revision):
            return None
        services.delete_revision(revision)
    except ClusterRefused as error:
        return f"{dead} holds the route, and its Revision may not be deleted: {error}"
    return Progress(State.WAITING, f"{death_of(live, dead)}; its Revision is deleted, so that 0 % acts", dead)


def _is_ready(revision: dict[str, object]) -> bool:
    status = revision.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    return not any(one.get("type") == "Ready" and one.get("status") == "False" for one in conditions or [])
