"""The DAG of one model: how its tasks hang together, and nothing else.

```
preflight ─► resolve ─► export ─► archive ─► evaluate ─► publish ─► claim ─► stage ─► smoke ─► canary ─► decide ─► …
                └──(a version that is there)────▲           │                           │
                                                            └─► look_back               ├─► go_live (first deployment)
                                                                                        └─► go_direct ─► bake
… ─► decide ─► promote ─► bake ─► decide_bake
        └─────► roll_back ◄───────────┘
settle: the teardown of claim, whatever happened ─► report
```

Every model has the same tasks, whatever its steps are: a model file that is edited in the middle of a release cannot
make a task vanish.

There is no `dagrun_timeout`: it would end a run without its teardown (docs/facts.md#teardowns-and-timeouts). Each wait
has a deadline of its own instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, TriggerRule

from model_release.spec import ModelSpec, format_duration
from model_release.tasks import late
from model_release.tasks.assets import back_live, candidate_asset, live_asset, version_asset
from model_release.tasks.base import RETRIES, documented
from model_release.tasks.build import ArchiveModel, Export, Publish, Resolve
from model_release.tasks.canary import Bake, CanarySensor, Decide
from model_release.tasks.claim import ClaimService
from model_release.tasks.evaluate import Evaluate
from model_release.tasks.finish import Report, Settle
from model_release.tasks.look_back import LookBack
from model_release.tasks.params import form
from model_release.tasks.preflight import Preflight
from model_release.tasks.serve import GoDirect, GoLive, Promote, RollBack, Smoke, Stage

ROLL_BACK = "roll_back"


def release_dag(spec: ModelSpec, project: Path, versions: Sequence[str] = (), plan: Sequence[str] = ()) -> DAG:
    """`release_<model>`. `project` is the folder that holds dags/ and include/; the form suggests `versions`, and tells
    what the last `plan` said."""
    with DAG(
        f"release_{spec.model}",
        description=f"Releases {spec.model} on {spec.service.key} by canary: {spec.rollout.path}",
        doc_md=_documentation(spec),
        schedule=_schedule(spec, project),
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        params=form(versions, plan),
        default_args=RETRIES,
        tags=["model-release", spec.model, spec.service.key],
        deadline=late.alert(spec),
    ) as dag:
        common: dict[str, Any] = {"spec": spec}
        build = {**common, "root": project}
        built = "evaluate" if spec.evaluation else "publish"
        resolve = Resolve(task_id="resolve", build="export", built=built, **build)
        exports, archives, evaluates = _steps(spec)
        export = exports(task_id="export", **build)
        archive = archives(task_id="archive", **build)
        publish = Publish(
            task_id="publish",
            trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
            outlets=[version_asset(spec)],
            **build,
        )
        Preflight(task_id="preflight", **build) >> resolve >> export >> archive
        if spec.evaluation:
            evaluate = evaluates(task_id="evaluate", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, **build)
            [resolve, archive] >> evaluate >> publish
        else:
            [resolve, archive] >> publish

        claim = ClaimService(task_id="claim", root=project, **common).as_setup()
        stage = Stage(task_id="stage", root=project, **common)
        smoke = Smoke(task_id="smoke", root=project, first="go_live", direct="go_direct", canary="canary", **common)
        canary = CanarySensor(task_id="canary", **common)
        decide = Decide(task_id="decide", watch="canary", onward="promote", back=ROLL_BACK, **common)
        live = [live_asset(spec)]
        go_live = GoLive(task_id="go_live", outlets=live, **common)
        go_direct = GoDirect(task_id="go_direct", outlets=live, **common)
        promote = Promote(task_id="promote", outlets=live, **common)
        roll_back = RollBack(
            task_id=ROLL_BACK,
            trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
            outlets=[back_live(spec)],
            **common,
        )
        settle = Settle(task_id="settle", **common).as_teardown(setups=claim, on_failure_fail_dagrun=True)
        # A teardown, too: marking a run failed or successful by hand skips all other tasks that have not run, and a run
        # whose last task is skipped would end as a success.
        report = Report(task_id="report", **common).as_teardown(on_failure_fail_dagrun=True)

        publish >> claim >> stage >> smoke >> [go_live, go_direct, canary]
        canary >> decide >> [promote, roll_back]
        last: list[Any] = [promote, go_direct]
        if spec.bakes:
            bake = Bake(task_id="bake", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, **common)
            decide_bake = Decide(task_id="decide_bake", watch="bake", onward=None, back=ROLL_BACK, **common)
            last >> bake >> decide_bake >> roll_back
            last = [bake]
        # Never from a branch: it would skip the teardown with the ways it does not take
        # (docs/facts.md#teardowns-and-timeouts).
        [*last, roll_back, go_live] >> settle >> report
        publish >> LookBack(task_id="look_back", **common) >> report
    return documented(dag)


def _steps(spec: ModelSpec) -> tuple[Any, Any, Any]:
    """The heavy steps of the build, on the worker or in pods of their own."""
    if spec.build.within == "worker":
        return Export, ArchiveModel, Evaluate
    # Imports kubernetes: only models that build in pods pay for it when DAGs are parsed.
    from model_release.tasks.pods import ArchiveInPod, EvaluateInPod, ExportInPod

    return ExportInPod, ArchiveInPod, EvaluateInPod


def _schedule(spec: ModelSpec, project: Path) -> Any:
    """The model file's schedule, and each new candidate where a training of this project makes them or the source is
    watched."""
    if spec.training is None and spec.source.watch is None:
        return spec.schedule
    new = candidate_asset(spec, project)
    if spec.schedule is None:
        return [new]
    return AssetOrTimeSchedule(timetable=CronTriggerTimetable(spec.schedule, timezone="UTC"), assets=[new])


def _documentation(spec: ModelSpec) -> str:
    """Markdown, for whoever opens the DAG. The model file is part of it: a change of it is a new version of the DAG."""
    limits = ", ".join(metric.name for metric in spec.judge.metrics if not (metric.observe or metric.delay))
    given = spec.rollout.deadline
    deadline = "that the plan chooses" if given is None else f"of {format_duration(given)}"
    chosen = "as long as the plan chooses" if spec.rollout.bake is None else format_duration(spec.rollout.bake)
    late = ", ".join(metric.name for metric in spec.judge.metrics if metric.delay and not metric.observe)
    known = f" (by {late}, too, known up to {format_duration(spec.judge.delay)} after an answer)" if late else ""
    bake = f", then watched for {chosen}{known}" if spec.bakes else ""
    return "\n\n".join(
        [
            f"Builds the newest candidate of `{spec.model}` and puts it live on `{spec.service.key}`: "
            f"{spec.rollout.path} of the traffic{bake}. It gets more on evidence on {limits}, from at least "
            f"{spec.judge.min_requests} requests; evidence against the new version, or none by the deadline "
            f"{deadline}, rolls back.",
            "**Trigger** starts one; everything in its form may stay as it is. **Backfill** builds and evaluates older "
            "versions and moves no traffic. The tab **Releases** shows the canary beside stable. A run that "
            "was rolled back is red; its task `report` says why.",
            f"In a hurry: `rollback_{spec.model}` takes the traffic back now, `promote_{spec.model}` promotes what is "
            "open, in spite of the judge.",
            f"```json\n{spec.model_dump_json(indent=2, exclude_none=True)}\n```",
        ]
    )
