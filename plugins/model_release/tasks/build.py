"""Checkpoint → version: resolve, export, archive, publish.

The tasks share nothing but S3: each may run on another machine. What one hands to the next is a folder below
`builds/<build>/`, named by everything that shapes the result, so a task that runs twice finds its own work there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow.sdk import BaseBranchOperator

from model_release.errors import SpecError
from model_release.tasks import connections
from model_release.tasks.base import ReleaseOperator, telling
from model_release.tasks.run import Run


def newest_moment(context: Any) -> Any:
    """Candidates made later do not count: the end of the data interval of a scheduled or backfilled run, or the
    moment a run without one was asked for."""
    return context["dag_run"].data_interval_end or context["dag_run"].run_after


class BuildOperator(ReleaseOperator):
    """A task of the build; knows where the project is, and what `Resolve` found."""

    ui_color = "#e6f4ea"

    def __init__(self, *, root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    @property
    def handler(self) -> Path:
        return self.root / "include" / "handlers" / "image_classifier.py"

    def resolved(self, context: Any) -> dict[str, Any]:
        found = context["ti"].xcom_pull(task_ids="resolve", key="resolved")
        if not found:
            raise SpecError("task resolve left no result for this run; clear it, and the build follows")
        return dict(found)


class Resolve(BuildOperator, BaseBranchOperator):
    """Finds out what this run releases, and goes to `export`, or past the build where the version is there.

    A version that the form names is looked up and verified. Otherwise the newest candidate of the source is
    fetched, checked and put beside the builds, so that the tasks after this one build what was seen here even when
    the source changes meanwhile. Run again, it looks again: a newer candidate may be found then.
    """

    def choose_branch(self, context: Any) -> str:
        with telling(self, context):
            found = self.find(context, Run.of(context, self.spec))
        context["ti"].xcom_push(key="resolved", value=found)
        return "publish" if "version" in found else "export"

    def execute(self, context: Any) -> Any:
        return BaseBranchOperator.execute(self, context)

    def find(self, context: Any, run: Run) -> dict[str, Any]:
        from model_release.artifact import export, source

        store = connections.store(self.spec.store)
        if named := run.params.get("version"):
            version = store.version(named)
            self.log.info("The form asks for version %s, made %s: nothing to build", named, version.time)
            return {"version": version.name}
        with TemporaryDirectory(prefix="source-") as scratch:
            checkpoint = source.fetch(
                self.spec.source.model_dump(exclude_none=True),
                Path(scratch, "checkpoint"),
                base=self.root,
                s3=connections.s3() if self.spec.source.s3 else None,
                not_later_than=newest_moment(context),
            )
            self.log.info("%s: %s, %d labels", checkpoint.origin, checkpoint.architecture, len(checkpoint.labels))
            toolchain = export.toolchain(self.handler)
            built = store.find(checkpoint.fingerprint, toolchain=toolchain, service=self.spec.service.name)
            if built:
                self.log.info("Version %s was built of the same checkpoint: nothing to build", built.name)
                return {"version": built.name}
            identity = [checkpoint.fingerprint, self.spec.service.name, toolchain]
            build = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
            store.stash(f"{build}/checkpoint", checkpoint.directory)
        return {
            "build": build,
            "fingerprint": checkpoint.fingerprint,
            "source": {
                "origin": checkpoint.origin,
                "candidate": checkpoint.candidate,
                "commit": checkpoint.commit,
                "architecture": checkpoint.architecture,
            },
        }


class Export(BuildOperator):
    """Checkpoint → TorchScript, proven equal to the original at batches 1, 3 and 8.

    Run again, it exports again: equal input gives equal bytes, so what follows finds its own work.
    """

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        from model_release.artifact import export

        resolved = self.resolved(context)
        store = connections.store(self.spec.store)
        with TemporaryDirectory(prefix="build-") as scratch:
            store.unstash(f"{resolved['build']}/checkpoint", Path(scratch, "checkpoint"))
            made = export.export(
                Path(scratch, "checkpoint"),
                Path(scratch, "export"),
                handler=self.handler,
                fingerprint=resolved["fingerprint"],
                log=self.log.info,
            )
            store.stash(f"{resolved['build']}/export", made.directory)
            return {"parity": made.report["parity"]}


class ArchiveModel(BuildOperator):
    """TorchScript → `.mar` in KServe's layout, which then has to answer real images in a bare environment.

    Run again, it archives again: equal input gives equal bytes.
    """

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        from model_release.artifact import archive

        resolved = self.resolved(context)
        store = connections.store(self.spec.store)
        with TemporaryDirectory(prefix="build-") as scratch:
            store.unstash(f"{resolved['build']}/export", Path(scratch, "export"))
            made = archive.archive(
                Path(scratch, "export"),
                self.spec.service.name,
                self.handler,
                Path(scratch, "archive"),
                log=self.log.info,
            )
            archive.check(made, Path(scratch, "export"), log=self.log.info)
            store.stash(f"{resolved['build']}/archive", made.directory)
            return {"sha256": made.sha256, "size": made.size}


class Publish(BuildOperator):
    """The archive becomes an immutable version in S3; or the version that was asked for is verified there.

    Run again, it finds the version and uploads nothing.
    """

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        from model_release.artifact import export

        resolved = self.resolved(context)
        store = connections.store(self.spec.store)
        if "version" in resolved:
            version = store.version(resolved["version"])
        else:
            with TemporaryDirectory(prefix="build-") as scratch:
                store.unstash(f"{resolved['build']}/archive", Path(scratch, "archive"))
                store.unstash(f"{resolved['build']}/export", Path(scratch, "export"))
                report = export.load(Path(scratch, "export")).report
                about = {"model": self.spec.model, "service": self.spec.service.name, "source": resolved["source"]}
                version = store.publish(Path(scratch, "archive"), {**report, **about})
        self.log.info("Version %s at %s", version.name, version.storage_uri)
        return {"version": version.name, "uri": version.storage_uri}
