"""The first task of a release: whether it could work at all. `python -m model_release doctor` asks the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_release.errors import NotReady, NotReadyYet
from model_release.spec import ModelSpec
from model_release.tasks import connections, suggestions
from model_release.tasks.base import ReleaseOperator
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.doctor import World


class Preflight(ReleaseOperator):
    """Looks at cluster, store, metrics and clocks, a log line for each, and ends the release where an error would end
    it later, with traffic moved by then: also a canary that its deadline would end, more often than not. Runs that move
    no traffic are looked at too, and go on: they need less.

    Returns the findings; the form shows what the plan says. Run again, it looks again.
    """

    def __init__(self, *, root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def release(self, context: Any, run: Run) -> list[dict[str, Any]]:
        from model_release.doctor import PLAN, SHADOW, Level, examine

        found = []
        for one in examine(replace(world(self.spec, self.root), address=run.installation)):
            say = {Level.OK: self.log.info, Level.WARNING: self.log.warning, Level.ERROR: self.log.error}[one.level]
            say("%s", one)
            found.append(one)
        if plan := [one.sentence for one in found if one.check == PLAN and one.level is Level.OK]:
            suggestions.remember(self.spec.model, plan=plan)
        errors = [one for one in found if one.level is Level.ERROR]
        if run.rollout != "canary":  # nobody waits for the judge, nor for a comparison
            errors = [one for one in errors if one.check not in (PLAN, SHADOW)]
        if errors and run.moves_traffic:
            lasting = [one for one in errors if not one.passing]
            first = (lasting or errors)[0]
            more = f" (and {len(errors) - 1} more in the log)" if len(errors) > 1 else ""
            said = f"{first.check}: {first.sentence}; {first.cure}{more}"
            raise NotReady(said) if lasting else NotReadyYet(said)
        return [one.as_dict() for one in found]


def world(spec: ModelSpec, root: Path) -> World:
    """The model's clients, by the Airflow connections that its release uses."""
    from model_release.build.samples import chosen
    from model_release.doctor import World

    def samples() -> int:
        shadow = spec.rollout.shadow
        return 0 if shadow is None else len(chosen(shadow.place, root, connections.reach, shadow.requests, ""))

    return World(
        spec=spec,
        role=root / "include" / "manifests" / "role.yaml",
        cluster=connections.cluster,
        store=lambda: connections.store(spec.store),
        prometheus=connections.prometheus,
        mlflow=connections.mlflow,
        samples=samples,
    )
