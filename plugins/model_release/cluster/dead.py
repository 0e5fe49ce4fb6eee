"""A revision that was ready and is not any more: who is dead, what that holds up, and how a dead canary is let go.

Knative leaves a whole route as it was, whatever shares are written, as long as one revision that the split names is
dead. So the brake of a dead canary is 0 % **and** the deletion of its failed Revision: its Configuration falls back to
the revision that was ready before, the route is free within half a second, and Knative makes the deleted one anew, at
0 %. In Standard mode KServe takes a dead canary out of the routes by itself, and gives it its share back when it
heals: there 0 % is the whole brake, and needed all the same.

Seen on the real controllers: crash, crash-restored, crash-freed, stable-crashes, standard-crash in tests/data/real.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from model_release.cluster.progress import Progress, State
from model_release.cluster.release import Release
from model_release.errors import ClusterRefused

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService, InferenceServices

# The words of Knative's Configuration, with the last ones of the container.
_FAILED = re.compile(r'Revision "([^"]+)" failed with message: (.*)', re.DOTALL)


def tell_frozen(live: InferenceService) -> str:
    """A sentence for whoever waits for a share that does not come; nothing when the route is free."""
    dead = live.frozen_by
    if dead is None:
        return ""
    if dead in (live.rolled_out, live.prev_revision):
        return f"frozen by the dead stable revision {dead}: no share acts until it heals; a promotion would"
    return f"frozen by the dead canary {dead}: no share acts until it heals or its Revision is deleted"


def and_frozen(said: str, live: InferenceService) -> str:
    """`said`, and that the route is frozen, if it is."""
    frozen = tell_frozen(live)
    return f"{said}; {frozen}" if frozen else said


def death_of(live: InferenceService, canary: str) -> str | None:
    """See `cluster.rollout.death_of`; this is how Knative tells it of the latest revision."""
    if live.latest_ready != canary:
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
    """Deletes the Revision of the dead canary, where 0 % is written and the frozen route still gives it traffic. Its
    pods' last words, which go with it, are in the sentence. Again: the one that was made anew is ready or not, and in
    neither case frozen with a share.

    Only that of a canary, only while its Ready is False, only the very one that was read (uid, resourceVersion); never
    the baseline, nor what KServe takes for the stable revision.

    Returns a Progress when it was deleted; a sentence when that may not be done, so that the caller's own way goes on:
    the route is free when the canary heals, or when a restored revision is ready; None when there is nothing to let go.

    Raises:
        ClusterUnavailable: nobody knows whether it was deleted, or it was not read as it is now: read anew.
    """
    dead = live.frozen_by
    if dead is None or live.canary_percent != 0 or not live.serving.get(dead):
        return None
    if dead in (release.stable.revision, live.rolled_out) or not (release.bars(dead) or release.canary is None):
        return None
    try:
        revision = services.revision(live.namespace, dead)
        said = _failure_of(revision)
        if revision is None or said is None:
            return None
        services.delete_revision(revision)
    except ClusterRefused as error:
        return f"frozen by the dead canary {dead} until it heals or what replaces it is ready: {error}"
    return Progress(State.WAITING, f"{dead} is dead: {said}; its Revision is deleted, so that 0 % acts", dead)


def _failure_of(revision: dict[str, Any] | None) -> str | None:
    """Why a Revision's Ready is False; None when it is not."""
    for one in ((revision or {}).get("status") or {}).get("conditions") or []:
        if one.get("type") == "Ready" and one.get("status") == "False":
            return _short(str(one.get("message") or one.get("reason") or "its Revision is not ready"))
    return None
