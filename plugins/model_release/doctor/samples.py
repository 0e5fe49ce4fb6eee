"""The sample pictures of a shadow: whether there are any, and enough of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from model_release.errors import ReleaseError
from model_release.spec import Shadow

from .finding import Finding, Level, ok

SHADOW = "shadow"
CURE = "put pictures such as users send there; or rollout.shadow.if_missing: go, and a release goes on without"


def check(count: Callable[[], int], shadow: Shadow, *, needed: bool) -> Iterator[Finding]:
    """How many pictures there are (`count`). An error where a release would end for want of them: `needed` is False for
    a service that has no stable revision to compare with."""
    from model_release.judging.pairs import least

    level = Level.ERROR if needed and shadow.if_missing == "refuse" else Level.WARNING
    try:
        found = count()
    except ReleaseError as trouble:
        yield Finding(SHADOW, level, str(trouble), CURE, trouble.transient)
        return
    if shadow.max_changed is not None and found < (wanted := least(shadow.max_changed)):
        limit = f"{100 * shadow.max_changed:g} %"
        said = f"{shadow.place} has {found} pictures, and {wanted} are the least that can show a share below {limit}"
        yield Finding(SHADOW, level, said, CURE)
    else:
        yield ok(SHADOW, f"{found} pictures of {shadow.place} are compared before any user meets the canary")
