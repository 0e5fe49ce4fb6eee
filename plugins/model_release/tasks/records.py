"""The decision record of this run's release, in the store: read, changed and written back by each task that has
something to add. Two writers at one moment cannot lose each other's words: the write is conditional."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from model_release.errors import ReleaseError, StoreUnavailable
from model_release.spec import ModelSpec
from model_release.tasks import connections
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.judging import Policy, Verdict, Window
    from model_release.judging.record import Carried, Record
    from model_release.store.store import Store

log = logging.getLogger(__name__)

_TRIES = 5  # each lost race is another task that wrote; a run has only a few at once


def now() -> str:
    """This moment as records write it."""
    return moment(datetime.now(UTC))


def moment(when: datetime) -> str:
    """A moment as records write it: ISO 8601, whole milliseconds."""
    return when.isoformat(timespec="milliseconds")


def read(spec: ModelSpec, run: Run) -> Record | None:
    """The record so far; None before the first word. Raises the store's errors, and `VersionDamaged` for a document
    that is no record, or one of a newer edition."""
    from model_release.release.index import parsed

    store = connections.store(spec.store)
    found, _ = store.read_json(f"releases/{run.release}.json")
    return None if found is None else parsed(found, run.release, store.uri)


def change(spec: ModelSpec, run: Run, edit: Callable[[Record], None], store: Store | None = None) -> Record:
    """Applies `edit` to the record, which is begun where there is none, and stores it. `edit` may be called more than
    once; what it records again replaces what it had recorded. `store` saves looking the connection up again. Errors: as
    `read`.

    The index of releases is told what it shows; where it cannot be written, that is logged, and the release goes on.
    """
    from model_release.judging.record import Record
    from model_release.release.index import Entry, parsed

    store, key = store or connections.store(spec.store), f"releases/{run.release}.json"
    for left in reversed(range(_TRIES)):
        found, tag = store.read_json(key)
        record = (
            Record.new(
                run.release,
                model=spec.model,
                service=spec.service.key,
                version=None,
                started=now(),
                run={
                    "dag_id": run.dag_id,
                    "run_id": run.run_id,
                    "url": run.url,
                    "note": run.params.get("note"),
                    "bundle": run.bundle,
                },
            )
            if found is None
            else parsed(found, run.release, store.uri)
        )
        if left == _TRIES - 1:  # a try after it may find what this one wrote, though it was told that it failed
            before = None if found is None else Entry.of(record)
        edit(record)
        try:
            store.write_json(key, record.to_dict(), if_match=tag)
            break
        except StoreUnavailable:
            if not left:
                raise
    # Looks come every few seconds and change nothing that a list shows; what is over is noted each time.
    if Entry.of(record) != before or record.outcome is not None:
        _note(store, record)
    return record


def _note(store: Store, record: Record) -> None:
    """Puts the release into the lists. They can be made anew from the records, so no release fails for them."""
    from model_release.release.index import History

    try:
        History(store).note(record)
    except ReleaseError as error:
        log.warning(
            "Lists do not show the last change of %s: %s; `python -m model_release reindex %s` mends them",
            record.release,
            error,
            record.model,
        )


def put_step(
    record: Record,
    spec: ModelSpec,
    *,
    percent: int | None,
    opened: datetime,
    policy: Policy,
    windows: Sequence[Window],
    final: bool,
    verdict: Verdict,
    carried: Sequence[Carried] = (),
) -> None:
    """What was counted and said at one step, as far as it has come; `percent` None is the bake after promotion.
    `carried`: the steps before, whose windows its judge had taken in."""
    record.record_step(
        100 if percent is None else percent,
        opened.isoformat(timespec="milliseconds"),
        window_seconds=spec.rollout.window.total_seconds(),
        policy=policy,
        windows=windows,
        final=final,
        verdict=verdict,
        carried=carried,
    )


def windows_of(record: Record, percent: int | None, opened: datetime) -> int:
    """How many windows the record has of a step."""
    key = (100 if percent is None else percent, opened.isoformat(timespec="milliseconds"))
    return next((len(step["windows"]) for step in record.steps if (step["percent"], step["opened"]) == key), 0)
