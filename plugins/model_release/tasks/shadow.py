"""Shadow before traffic: pictures such as users send are answered by stable and by the canary at 0 %, side by side."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from model_release.errors import ShadowFailed, SpecError, StoreRefused, StoreUnavailable
from model_release.tasks import connections, records

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.judging.pairs import Pairs
    from model_release.spec import Shadow
    from model_release.tasks.service import ReleasedService


def compare(released: ReleasedService, shadow: Shadow, window: timedelta, root: Path, log: Any) -> None:
    """Compares, records what was counted, and says it in the log; then waits for half a window of the judge's. Run
    again, it asks for the same pictures and replaces what it had recorded.

    Raises:
        ShadowFailed: too many answers are others, or there is too little to compare by and the model file refuses then.
        RolledBack, CanaryLost: the release goes no further, or the canary is not what it staged.
        StoreUnavailable: the samples are not to be had now, and the model file does not go on without.
    """
    when = records.now()
    told: dict[str, Any]
    try:
        told = _asked(released, shadow, window, root, log).to_dict()
    except (SpecError, StoreRefused, StoreUnavailable) as error:
        if shadow.if_missing == "refuse" and error.transient:
            raise
        told = {"decision": "missing", "sentence": f"No pictures to compare by: {error}."}
    goes = told["decision"] in ("within", "observed")
    if told["decision"] in ("few", "missing") and shadow.if_missing == "go":
        goes = True
        told["sentence"] += " It goes on without, by rollout.shadow.if_missing: go."
    found = {"time": when, "from": shadow.place, "passed": goes, **told}
    released.record(lambda record: setattr(record, "shadow", found))
    if not goes:
        raise ShadowFailed(f"{told['sentence']} No user met the canary.")
    log.info("%s", told["sentence"])


def _asked(released: ReleasedService, shadow: Shadow, window: timedelta, root: Path, log: Any) -> Pairs:
    from model_release.build.samples import chosen
    from model_release.cluster.pairs import LOOK, compare
    from model_release.cluster.rollout import check_untouched
    from model_release.cluster.smoke import Line, smoke_url, stable_url
    from model_release.judging.pairs import Pairs

    pictures = chosen(shadow.place, root, connections.reach, shadow.requests, released.run.release)
    pairs = Pairs(len(pictures), shadow.max_changed)
    canary, way = released.canary(), partial(Line, model=released.name, ingress=connections.ingress())

    def looked() -> InferenceService:
        """The service, on which the release still goes on, with all of the traffic on stable: what its own address
        answers is stable's."""
        released.claim()
        live = released.live()
        check_untouched(live, canary, 0)
        return cast("InferenceService", live)

    def told() -> None:
        looked()
        log.info("%d of %d pictures asked, %d answers changed", pairs.asked, pairs.wanted, pairs.changed)

    live = looked()
    compare(pictures, partial(way, stable_url(live)), partial(way, smoke_url(live)), pairs, told)
    told()
    # A window holds two scrapes at least: after one the counts of these requests are in no window of the canary's.
    ends = time.monotonic() + window.total_seconds() / 2
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(left, LOOK))
        looked()
    return pairs
