"""A restored revision is asked, before it gets traffic, what every revision is asked before it gets traffic."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model_release.errors import SmokeFailed, StoreRefused, StoreUnavailable, VersionDamaged
from model_release.spec import ModelSpec
from model_release.tasks import connections

if TYPE_CHECKING:
    from model_release.serving.inference_service import InferenceService
    from model_release.serving.settle import Prove

# `settle` asks again by itself; a route that is not in place yet needs no patience here.
_SECONDS = 5.0


def prover(specs: Sequence[ModelSpec], storage_uri: str | None, log: Callable[..., None]) -> Prove:
    """What `settle` asks the restored stable template's revision: the smoke prediction of the version that it serves.

    A version outside of the stores of `specs` (models of this service) left no smoke test. It is let pass with a line
    in the log: its template is, field by field, the one that served before. A store that is away proves nothing: as
    a wrong answer does, it raises SmokeFailed, and the baseline keeps the traffic.
    """
    found = version_in(specs, storage_uri)

    def prove(live: InferenceService) -> None:
        from model_release.serving.smoke import smoke, smoke_url

        if found is None:
            log(
                "%s is of no store of this project: nobody knows what it should answer, and it is not asked",
                storage_uri,
            )
            return
        prefix, version = found
        try:
            store = connections.store(prefix)
            sample = store.smoke(store.version(version))
        except (StoreRefused, StoreUnavailable, VersionDamaged) as error:
            raise SmokeFailed(f"what version {version} should answer cannot be read: {error}") from error
        answered = smoke(smoke_url(live), live.name, sample, ingress=connections.ingress(), deadline=_SECONDS)
        log("%s answers %d images as version %s should", live.latest_created, len(answered.answers), version)

    return prove


def version_in(specs: Sequence[ModelSpec], storage_uri: str | None) -> tuple[str, str] | None:
    """(store, version) that `storage_uri` names, when it lies in the store of one of `specs`; without any (the model
    file was deleted), in whatever store it says."""
    for store in [re.escape(spec.store) for spec in specs] or ["s3://[^/]+/(?:.+/)?"]:
        if found := re.fullmatch(rf"({store})versions/([0-9a-f]{{16}})/", storage_uri or ""):
            return found[1], found[2]
    return None
