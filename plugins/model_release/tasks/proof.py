"""A restored revision is asked, before it gets traffic, what every revision is asked before it gets traffic."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from model_release.errors import SmokeFailed, SpecError, StoreRefused, StoreUnavailable, VersionDamaged
from model_release.store.objects import address
from model_release.tasks import connections

if TYPE_CHECKING:
    from model_release.cluster.change import Prove
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.smoke import Gateway
    from model_release.store.store import Store

# `settle` asks again by itself; a route that is not in place yet needs no patience here.
_SECONDS = 5.0


def prover(
    storage_uri: str | None,
    log: Callable[..., None],
    *,
    store_at: Callable[[str], Store] = lambda prefix: connections.store(prefix),
    ingress: Callable[[], Gateway | str | None] = lambda: connections.ingress(),
) -> Prove:
    """What `settle` asks the restored stable template's revision: the smoke prediction of the version that it serves.

    What is no version of this project left no smoke test. It is let pass with a line in the log: its template is,
    field by field, the one that served before. A store that is away proves nothing: as a wrong answer does, it raises
    SmokeFailed, and the baseline keeps the traffic.

    Args:
        store_at, ingress: where the store and the gateway are: by Airflow's connections unless said.
    """
    found = version_in(storage_uri)

    def prove(live: InferenceService) -> None:
        from model_release.cluster.smoke import smoke, smoke_url

        if found is None:
            log(
                "%s is of no store of this project: nobody knows what it should answer, and it is not asked",
                storage_uri,
            )
            return
        prefix, version = found
        try:
            store = store_at(prefix)
            sample = store.smoke(store.version(version))
        except (SpecError, StoreRefused, StoreUnavailable, VersionDamaged) as error:
            raise SmokeFailed(f"what version {version} should answer cannot be read: {error}") from error
        answered = smoke(smoke_url(live), live.name, sample, ingress=ingress(), deadline=_SECONDS)
        log("%s answers %d images as version %s should", live.latest_created, len(answered.answers), version)

    return prove


def version_in(storage_uri: str | None) -> tuple[str, str] | None:
    """(store, version) that `storage_uri` names, in whatever store it says: another model of the service may have been
    live before, and its file may be deleted since. None when it is no version of this project."""
    found = re.fullmatch(r"(.+/)versions/([0-9a-f]{16})/", storage_uri or "")
    try:
        return (address(found[1]).uri, found[2]) if found else None
    except SpecError:
        return None
