"""Checkpoint → version: resolve, export, archive, publish.

The tasks share nothing but S3, and a folder where `MODEL_RELEASE_BUILDS` names one; without it each may run on another
machine. What one hands to the next is a folder below `builds/<build>/`, named by everything that shapes the result, so
a task that runs twice finds its own work there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseBranchOperator

from model_release.errors import ReleaseError, SpecError
from model_release.release.outcome import NOTHING_NEW
from model_release.spec import ModelSpec
from model_release.tasks import connections, lineage, records, suggestions, watching
from model_release.tasks.assets import emit, version_asset
from model_release.tasks.base import ReleaseOperator, telling
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService
from model_release.tasks.which import Choice, choose

if TYPE_CHECKING:
    from model_release.build import steps
    from model_release.store.store import Store


class BuildOperator(ReleaseOperator):
    """A task of the build; knows where the project is, and what `Resolve` found."""

    ui_color = "#e6f4ea"

    def __init__(self, *, root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    @property
    def handler(self) -> Path:
        from model_release.build import runtimes

        return runtimes.handler(self.root, self.spec.runtime)

    def step(self, context: Any, name: steps.Name) -> dict[str, Any]:
        """Does a step of the build here: the same that a pod would do."""
        from model_release.build import steps

        resolved = self.resolved(context)
        service, fingerprint = self.spec.service.name, resolved["fingerprint"]
        request = steps.Request(
            name, resolved["build"], service, fingerprint, runtime=self.spec.runtime, **steps.asked_of(self.spec)
        )
        return steps.run(connections.builds(self.spec), request, self.root, connections.reach, self.log.info)

    def resolved(self, context: Any) -> dict[str, Any]:
        found = context["ti"].xcom_pull(task_ids="resolve", key="resolved")
        if not found:
            raise SpecError("task resolve left no result for this run; clear it, and the build follows")
        return dict(found)


class Resolve(BuildOperator, BaseBranchOperator):
    """Finds out what this run releases, by the rule of `which.choose`, and goes to `build`, or past the build where the
    version is there already. A version that is live already ends the run: nothing new.

    A version that the form names is looked up and verified. Otherwise the candidate is fetched, checked and put beside
    the builds, so that the tasks after this one build what was seen here even when the source changes meanwhile. Run
    again, it looks again: a run for "now" may find a newer candidate then. A canary that an earlier try of the run had
    opened has no traffic while the next one is built.

    Args:
        build: the task that begins the build.
        built: the task that goes on with a version that is there.
    """

    def __init__(self, *, build: str, built: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.to_build, self.to_built = build, built

    def execute(self, context: Any) -> Any:
        return BaseBranchOperator.execute(self, context)

    def choose_branch(self, context: Any) -> str | list[str]:
        with telling(self, context):
            run = Run.of(context, self.spec)
            if run.moves_traffic:
                ReleasedService(self.spec, run).close(self.task_id, self.log.info)
            choice = choose(context["dag_run"], run.params)
            self.log.info("To be released: %s", choice.rule)
            found = self.find(choice)
            if run.rollout == "direct":
                check_was_live(connections.store(self.spec.store), found["version"], ReleasedService(self.spec, run))
            records.change(self.spec, run, lambda record: _begin(record, found))
            found["nothing_new"] = self.nothing_new(run, found, choice, context["dag_run"].run_type)
        context["ti"].xcom_push(key="resolved", value=found)
        if found["nothing_new"]:
            return []
        return self.to_built if "version" in found else self.to_build

    def find(self, choice: Choice) -> dict[str, Any]:
        """What `choice` means, with the version where it is built already, else with the build to come."""
        from model_release.build import export, source, steps

        store = connections.builds(self.spec)
        if choice.version:
            version = store.version(choice.version)
            check_service(version, self.spec)
            self.log.info("Version %s, made %s: nothing to build", version.name, version.time)
            return {"version": version.name, "source": {**version.metadata["source"], "rule": choice.rule}}
        with TemporaryDirectory(prefix="source-") as scratch:
            checkpoint = source.fetch(
                self.spec.source.place | ({"revision": choice.revision} if choice.revision else {}),
                Path(scratch, "checkpoint"),
                base=self.root,
                reach=connections.reach,
                hub=connections.hub() if self.spec.source.hub else None,
                mlflow=connections.mlflow() if self.spec.source.mlflow else None,
                not_later_than=choice.not_later_than,
                log=self.log.info,
            )
            self.log.info("%s: %s, %d labels", checkpoint.origin, checkpoint.architecture, len(checkpoint.labels))
            told = {
                "origin": checkpoint.origin,
                "candidate": checkpoint.candidate,
                "commit": checkpoint.commit,
                "time": checkpoint.time.isoformat() if checkpoint.time else None,
                "architecture": checkpoint.architecture,
            }
            seen = {"candidate": checkpoint.identity}
            toolchain = export.toolchain(self.handler, **steps.asked_of(self.spec))
            built = store.find(checkpoint.fingerprint, toolchain=toolchain, service=self.spec.service.name)
            if built:
                self.log.info("Version %s was built of the same checkpoint: nothing to build", built.name)
                return {**seen, "version": built.name, "source": {**told, "rule": choice.rule}}
            identity = [checkpoint.fingerprint, self.spec.service.name, toolchain]
            build = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
            store.stash(f"{build}/checkpoint", checkpoint.directory, checkpoint.digests)
            about = {"build": build, "fingerprint": checkpoint.fingerprint}
        return {**seen, **about, "source": {**told, "rule": choice.rule}}

    def nothing_new(self, run: Run, found: dict[str, Any], choice: Choice, run_type: Any) -> str | None:
        """Why there is nothing to release: the version is live, or an event told of a candidate that another release
        took already; None where there is something. What it takes is noted, for the next event."""
        candidate = found.pop("candidate", None)
        if candidate and run.moves_traffic:
            store = connections.store(self.spec.store)
            other = watching.take(
                store,
                self.spec.model,
                candidate,
                run.release,
                by_event=run_type == "asset_triggered",
                newest=choice.revision is None and run_type != "backfill",
            )
            if other is not None:
                return f"{candidate} was taken by the release {other} already; nothing new."
        return NOTHING_NEW if "version" in found and self.is_live(run, found["version"]) else None

    def is_live(self, run: Run, version: str) -> bool:
        """Whether the version has all of the traffic, in a service that nobody is changing. A look that fails, or a
        run that moves nothing, says no: then the tasks that follow find out."""
        if not run.moves_traffic:
            return False
        try:
            released = ReleasedService(self.spec, run)
            wanted = released.wanted(self.root, connections.store(self.spec.store).version(version).storage_uri)
            return released.has_live(wanted)
        except ReleaseError as error:
            self.log.info("Whether it is live already is left to task stage: %s", error)
            return False


def _begin(record: Any, found: dict[str, Any]) -> None:
    if record.version != found.get("version"):  # how an earlier try of the run ended, was of another version
        record.outcome, record.reason, record.ended = None, "", None
    record.version, record.source = found.get("version"), found["source"]


def check_service(version: Any, spec: ModelSpec) -> None:
    """Raises `SpecError` for a version that was built for another service, since its archive answers under that name,
    or for another runtime, since no other can open it."""
    if version.metadata.get("service") != spec.service.name:
        raise SpecError(
            f"version {version.name} was built for service {version.metadata.get('service')}, not for "
            f"{spec.service.name}; build it again for this one"
        )
    from model_release.build import runtimes

    runtime = version.metadata.get("runtime", runtimes.DEFAULT)  # versions of earlier editions do not say
    if runtime != spec.runtime:
        raise SpecError(
            f"version {version.name} was built for runtime {runtime}, and the model file says runtime: {spec.runtime}; "
            f"runtime: {runtime} releases it, or build it again for this one"
        )


def check_was_live(store: Store, version: str, released: ReleasedService) -> None:
    """Raises `SpecError` for a version that no release in the store's history left live on this very service: only a
    canary proves that. Another service, and one of the same name in another cluster, has other users and other pods."""
    from model_release.release.index import History

    key, history = released.spec.service.key, History(store)
    lease = released.leases.read(released.namespace, released.name)
    for one in history.entries():
        if (one.version, one.service) != (version, key) or one.outcome not in ("promoted", "first"):
            continue
        record = history.record(one.release)
        where = (record.cluster or {}).get("lease") if record else None
        if where is None or (lease is not None and lease.uid == where):  # None: an older edition did not note it
            return
    raise SpecError(
        f"rollout: direct is for a version that was live before, and no release in {store.uri}releases/ left "
        f"{version} live on {key}; rollout: canary proves it (if one did, `python -m model_release reindex MODEL` "
        "finds it)"
    )


class Export(BuildOperator):
    """Checkpoint → what the runtime serves, proven equal to the original at batches 1, 3 and 8.

    Run again, it exports again: equal input gives equal bytes, so what follows finds its own work.
    """

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        return self.step(context, "export")


class ArchiveModel(BuildOperator):
    """Export → an archive in KServe's layout, which then has to answer real images in a bare environment.

    Run again, it archives again: equal input gives equal bytes.
    """

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        return self.step(context, "archive")


class Publish(BuildOperator):
    """The archive becomes an immutable version in S3; or the version that was asked for is verified there.

    Run again, it finds the version and uploads nothing.
    """

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        from model_release.build import export
        from model_release.store import signing

        resolved = self.resolved(context)
        store = connections.builds(self.spec)
        if "version" in resolved:
            version = store.version(resolved["version"])
        else:
            with TemporaryDirectory(prefix="build-") as scratch:
                sums = store.unstash(f"{resolved['build']}/archive", Path(scratch, "archive"))
                store.unstash(f"{resolved['build']}/export", Path(scratch, "export"), only=[export.REPORT])
                report = export.load(Path(scratch, "export")).report
                # The rule is this run's; another run may come to the same version by another.
                source = {key: value for key, value in resolved["source"].items() if key != "rule"}
                about = {
                    "model": self.spec.model,
                    "service": self.spec.service.name,
                    "runtime": self.spec.runtime,
                    "source": source,
                    "evaluation": context["ti"].xcom_pull(task_ids="evaluate"),
                }
                version = store.publish(Path(scratch, "archive"), {**report, **about}, sums)
                if self.spec.signing and self.spec.signing.private_key:
                    keys = (self.spec.signing.private_key, self.spec.signing.public_key)
                    signing.sign_version(store, version, *(signing.key_file(key, self.root) for key in keys))
            suggestions.remember(self.spec.model, [one.name for one in store.versions()])
        records.change(self.spec, run, lambda record: setattr(record, "version", version.name))
        self.log.info("Version %s at %s", version.name, version.storage_uri)
        self.lineage = lineage.published(
            self.spec, run, version.name, version.storage_uri, resolved["source"], version.metadata
        )
        made = {"version": version.name, "uri": version.storage_uri}
        origin = resolved["source"].get("origin")
        emit(context, version_asset(self.spec), {**made, "origin": origin, "release": run.page})
        return made
