"""A revision that was ready and is not any more: who is dead, what that holds up, and how a dead canary is let go.

Knative leaves a whole route as it was, whatever shares are written, as long as one revision that the split names is
dead. So the brake of a dead canary is 0 % **and** the deletion of its failed Revision: its Configuration falls back to
the revision that was ready before, the route is free within half a second, and Knative makes the deleted one anew, at
0 %. One that died after its promotion is let go the other way round: first the deletion, then 0 %. In Standard mode
KServe takes a dead canary out of the routes by itself, and gives it its share back when it heals: there 0 % is the
whole brake, and needed all the same.

Knative's rule is in docs/facts.md#a-route-waits-for-every-revision. Seen on the real controllers: crash,
crash-restored, crash-freed, stable-crashes, standard-crash in tests/data/real. How one is let go after its promotion
follows from crash-freed and from docs/facts.md#who-is-rolled-out, which the sandbox repeats.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from model_release.cluster.progress import Progress, State
from model_release.cluster.release import Release
from model_release.errors import ClusterRefused

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.services import InferenceServices

# The words of Knative's Configuration, with the last ones of the container.
_FAILED = re.compile(r'Revision "([^"]+)" failed with message: (.*)', re.DOTALL)
# Those of its Route, of the revision for which it stays as it was.
_HELD = re.compile(r'Revision "([^"]+)" (?:failed to become ready|is not yet ready|referenced in traffic not found)')


def tell_frozen(live: InferenceService) -> str:
    """A sentence for whoever waits for a share that does not come; nothing when the route is free."""
    dead = live.frozen_by
    if dead is None:
        return ""
    if dead == live.rolled_out == live.latest_created:
        return f"frozen by the dead {dead}, which was promoted: no share acts until it heals or its Revision is deleted"
    if dead in (live.rolled_out, live.prev_revision):
        return f"frozen by the dead stable revision {dead}: no share acts until it heals; a promotion would"
    return f"frozen by the dead canary {dead}: no share acts until it heals or its Revision is deleted"


def and_frozen(said: str, live: InferenceService) -> str:
    """`said`, and that the route is frozen, if it is."""
    frozen = tell_frozen(live)
    return f"{said}; {frozen}" if frozen else said


def death_of(live: InferenceService, canary: str) -> str | None:
    """See `cluster.rollout.death_of`; this is how Knative tells it of the latest revision."""
    if live.latest_created != canary or live.latest_ready != canary:
        return None  # never ready, or made anew
    last_words = _last_words(live, canary)
    if live.frozen_by != canary and last_words is None:
        return None
    return f"{canary} is dead: {last_words or 'its Revision is not ready any more'}"


def _last_words(live: InferenceService, revision: str) -> str | None:
    configuration = live.conditions.get("PredictorConfigurationReady")
    if configuration is None or configuration.status != "False":
        return None
    found = _FAILED.search(configuration.message)
    return _short(found[2]) if found and found[1] == revision else None


def _short(words: str) -> str:
    """One line of it. A container's last words may be its log's last 80 lines: how they begin and end is enough."""
    line = " ".join(words.split())
    return line if len(line) <= 300 else f"{line[:120]} … {line[-160:]}"


def let_go(services: InferenceServices, live: InferenceService, release: Release) -> Progress | str | None:
    """Deletes the Revision of the dead canary, where the frozen route still gives it traffic. Its pods' last words,
    which go with it, are in the sentence. Again: the one that was made anew is ready or not, and in neither case
    frozen with a share.

    Of a canary with a share this is done once 0 % is written. One that has been promoted is done before: to KServe it
    is the stable revision, and 0 % then means "what the last promotion left", which it works out from a route that
    moves (`_fall_back`).

    Only that of a canary, only while its Ready is False, only the very one that was read (uid, resourceVersion); never
    the baseline.

    Returns a Progress when it was deleted, or is on its way out; a sentence when that may not be done, so that the
    caller's own way goes on: the route is free when the canary heals, or when a restored revision is ready; None when
    there is nothing to let go.

    Raises:
        ClusterUnavailable: nobody knows whether it was deleted, or it was not read as it is now: read anew.
    """
    if release.stable.revision is None:
        return None
    dead = _held_by(live)
    if dead is None or dead == release.stable.revision or not live.serving.get(dead):
        return None
    if dead == live.rolled_out:
        return _fall_back(services, live, release, dead)
    if live.frozen_by is None or live.canary_percent != 0 or not (release.bars(dead) or release.canary is None):
        return None
    try:
        revision = services.revision(live.namespace, dead)
        said = _failure_of(revision)
        if revision is None or said is None:
            return None
        services.delete_revision(revision)
    except ClusterRefused as error:
        return _not_deleted(dead, error)
    return _deleted(dead, said, "so that 0 % acts")


def _fall_back(
    services: InferenceServices, live: InferenceService, release: Release, dead: str
) -> Progress | str | None:
    """A promoted canary that is dead: with the split gone and its Revision deleted, Knative's Configuration falls back
    to the baseline, the route, which follows the latest ready revision, gives it everything, and KServe takes it for
    rolled out. Only then 0 % keeps the one that is made anew away from users.

    Written before, 0 % would freeze the route for good: KServe then asks for 100 % of the dead one beside 0 % of the
    latest, and learns that it goes back from the traffic alone, which does not move.

    None where the baseline cannot take over: it is not ready, or another revision between the two would come first.
    """
    if dead != release.canary or live.latest_created != dead:
        return None
    try:
        revision = services.revision(live.namespace, dead)
        if _ready_of(revision) == "True" or not _is_next(services, live.namespace, release, dead):
            return None
        if revision is not None and live.frozen_by is not None and (said := _failure_of(revision)) is not None:
            services.delete_revision(revision)
            return _deleted(dead, said, f"so that {release.stable.revision} takes over")
    except ClusterRefused as error:
        return _not_deleted(dead, error)
    if live.is_split:
        services.patch(live, {"spec": {"predictor": {"canaryTrafficPercent": None}}})
    return Progress(State.WAITING, f"{dead} is let go; {release.stable.revision} takes over", dead)


def _deleted(dead: str, said: str, why: str) -> Progress:
    return Progress(State.WAITING, f"{dead} is dead: {said}; its Revision is deleted, {why}", dead)


def _not_deleted(dead: str, error: ClusterRefused) -> str:
    return f"frozen by the dead canary {dead} until it heals or what replaces it is ready: {error}"


def _held_by(live: InferenceService) -> str | None:
    """The revision that keeps the route as it was: dead, gone, or just made anew and not ready yet."""
    route = live.conditions.get("PredictorRouteReady")
    found = _HELD.search(route.message) if route is not None and route.status != "True" else None
    return found[1] if found else None


def _is_next(services: InferenceServices, namespace: str, release: Release, dead: str) -> bool:
    """Whether Knative's Configuration falls back to the baseline: the newest that is ready, but for this one."""
    baseline = str(release.stable.revision)
    if _ready_of(services.revision(namespace, baseline)) != "True":
        return False
    name, _, first = baseline.rpartition("-")
    last = dead.rpartition("-")[2]
    if not (first.isdecimal() and last.isdecimal()):
        return False
    between = (f"{name}-{number:05d}" for number in range(int(first) + 1, int(last)))
    return not any(_ready_of(services.revision(namespace, one)) == "True" for one in between)


def _ready_of(revision: dict[str, Any] | None) -> str | None:
    """The status of a Revision's Ready: True, False or Unknown; None where there is none."""
    told = ((revision or {}).get("status") or {}).get("conditions") or []
    return next((str(one.get("status")) for one in told if one.get("type") == "Ready"), None)


def _failure_of(revision: dict[str, Any] | None) -> str | None:
    """Why a Revision's Ready is False; None when it is not."""
    for one in ((revision or {}).get("status") or {}).get("conditions") or []:
        if one.get("type") == "Ready" and one.get("status") == "False":
            return _short(str(one.get("message") or one.get("reason") or "its Revision is not ready"))
    return None
