"""What a model file may say: all that a user writes to release a model.

`model_file` reads one. Nothing here talks to a network, and nothing heavy is imported: DAG files need it each time they
are parsed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, model_validator

from .build import Build, Evaluation, Keep, Schedule, Signing, Source, Training
from .judge import BUCKET_EDGES_MS, JudgeSpec, Metric, Profile, Value
from .people import Approval, Email, Notify, Slack, Webhook
from .serve import Batching, Ramp, Resources, Rollout, Service, Shadow
from .units import Name, Part, PositiveDuration, StorePrefix, format_duration, parse_duration

__all__ = [
    "BUCKET_EDGES_MS",
    "Approval",
    "Batching",
    "Build",
    "Email",
    "Evaluation",
    "JudgeSpec",
    "Keep",
    "Metric",
    "ModelSpec",
    "Notify",
    "Profile",
    "Ramp",
    "Resources",
    "Rollout",
    "Service",
    "Shadow",
    "Signing",
    "Slack",
    "Source",
    "Training",
    "Value",
    "Webhook",
    "format_duration",
    "parse_duration",
]


class ModelSpec(Part):
    """One model file."""

    model: Name
    source: Source
    service: Service
    runtime: Literal["torchserve", "kserve"] = Field(
        "torchserve", description="What serves the model; a version is built for one."
    )
    store: StorePrefix = Field(
        description="Where versions and records are: s3://bucket/folder/, gs://bucket/folder/ or "
        "abfss://container@account.dfs.core.windows.net/folder/."
    )
    schedule: Schedule = Field(None, description="A cron expression or preset; nothing for runs by hand only.")
    training: Training | None = None
    evaluation: Evaluation | None = None
    build: Build = Build()
    signing: Signing | None = None
    rollout: Rollout = Rollout()
    judge: JudgeSpec
    approval: Approval = Field("never", description="When a person is asked; silence until the deadline rolls back.")
    answer_within: PositiveDuration = Field(
        timedelta(hours=4), description="How long an approval waits for its answer."
    )
    notify: Notify | None = None
    keep: Keep = Keep()

    @model_validator(mode="after")
    def _training_can_write(self) -> ModelSpec:
        """A training puts its candidates into the source."""
        if self.training is None:
            return self
        if self.source.hub or self.source.mlflow:
            raise ValueError(
                f"training cannot write to {self.source}; source: {{directory: …}} or {{s3: s3://…/}} is right"
            )
        if self.training.image and not self.source.s3:
            raise ValueError(f"training.image writes to S3, and the source is {self.source}; {{s3: s3://…/}} is right")
        return self

    @model_validator(mode="after")
    def _fold_fits_the_runtime(self) -> ModelSpec:
        if self.build.fold and self.runtime == "kserve":
            raise ValueError(
                "build.fold is TorchScript's, and runtime kserve serves what torch.export makes; without fold is right"
            )
        return self

    @model_validator(mode="after")
    def _what_is_watched_on_can_be_judged_alone(self) -> ModelSpec:
        asked = "bake" if self.rollout.bake else "promote_with_confidence"
        if getattr(self.rollout, asked) is not None and self.rollout.baked and not self._can_judge_alone:
            raise ValueError(
                f"rollout.{asked} watches on after the promotion, and no metric can be judged without stable beside "
                "it; a max_rate for one of judge.metrics is right"
            )
        return self

    @model_validator(mode="after")
    def _what_is_known_late_is_waited_for(self) -> ModelSpec:
        bake, delay = self.rollout.bake, self.judge.delay
        if delay and bake is None and not self.bakes:
            raise ValueError(
                "what has a delay is seen in the bake after the promotion, and there is none where no metric that "
                "decides can be judged without stable; a max_rate for one of judge.metrics is right"
            )
        if delay and bake is not None and bake <= delay:
            raise ValueError(
                f"rollout.bake {format_duration(bake)} is over before what has a delay of {format_duration(delay)} is "
                "known; longer than that is right, or no bake, and the plan chooses it"
            )
        return self

    @model_validator(mode="after")
    def _metrics_fit_the_mode(self) -> ModelSpec:
        if self.service.mode == "standard" and self.judge.profile not in ("istio", "istio-destination"):
            raise ValueError(
                f"Standard mode has no queue-proxy, whose metrics judge.profile {self.judge.profile} reads; istio or "
                "istio-destination is right"
            )
        return self

    @model_validator(mode="after")
    def _slices_are_counted(self) -> ModelSpec:
        for metric in self.judge.metrics:
            if metric.below is None or metric.slices is None or metric.slices.by in self.service.slices:
                continue
            by = metric.slices.by
            right = ", ".join([*self.service.slices, by])
            raise ValueError(
                f"judge.metrics.{metric.name}.slices: the handler counts by what service.slices names, and {by} is not "
                f"there; service: {{slices: [{right}]}} is right, and one release with it before it can be judged"
            )
        return self

    @property
    def bakes(self) -> bool:
        """Whether what is promoted is watched on: by the model file or, where that does not say, as far as anything can
        be judged without stable beside it."""
        if self.rollout.bake is not None:
            return bool(self.rollout.bake)
        return self._can_judge_alone

    @property
    def baked(self) -> timedelta:
        """How long what is promoted is watched on: of a release that began, what was chosen for it. Where the model
        file does not say, what is known late is waited for, and then watched as long as anything else."""
        return self.rollout.baked + (self.judge.delay if self.rollout.bake is None else timedelta(0))

    @property
    def _can_judge_alone(self) -> bool:
        return any(metric.max_rate is not None and not metric.observe for metric in self.judge.metrics)

    @property
    def serving_runtime(self) -> str:
        """The name of the ServingRuntime, or ClusterServingRuntime, on the cluster."""
        return self.service.runtime or f"model-release-{self.runtime}"

    def policy(
        self,
        percent: int | None,
        *,
        guard: bool = False,
        answered: int = 0,
        least_windows: int = 1,
        looked: int = 0,
    ) -> dict[str, Any]:
        """What `judging.Policy.from_dict` reads: one test for the whole canary, whatever its share.

        `None` is the bake after promotion: the canary has become the stable revision, there is nothing beside it,
        and limits against stable cannot be judged; what is known late is judged only then. It is a test of its own,
        and has half of the allowance for false roll-backs.

        Args:
            percent: the share that is under way.
            guard: the canary was judged already; these windows may stop it and never promote it.
            answered: so many first windows were judged, and a person has answered what they said.
            least_windows: promoted in no fewer windows.
            looked: so many looks at a deadline were before.
        """
        rollout = self.rollout
        metrics = [
            metric.limits() | ({"edges": list(edges)} if (edges := self.judge.edges_of(metric)) else {})
            for metric in self.judge.metrics
            if percent is None or metric.delay is None
        ]
        values = [value.model_dump(exclude_none=True) for value in self.judge.values]
        if percent is None:
            values = [value for value in values if "max_ratio" not in value]
            metrics = [
                {k: v for k, v in metric.items() if k not in ("max_ratio", "floor", "edges")}
                for metric in metrics
                if "max_rate" in metric
            ]
        way: dict[str, Any] = {}
        if percent is not None and rollout.ramp is not None:
            way = {"ramp": {"budget": rollout.ramp.budget, "most": rollout.ramp.most / 100}}
        elif percent is not None:
            way = {"shares": [step / 100 for step in rollout.steps]}
        # A person may take their time, and what turns bad meanwhile is to be found as fast.
        asked = self.answer_within if self.approval != "never" else timedelta(0)
        longest = self.baked if percent is None else rollout.longest + asked
        return {
            "false_rollback": self.judge.false_rollback,
            "false_promotion": self.judge.false_promotion,
            "min_requests": self.judge.min_requests,
            "warm_up": self.judge.warm_up,
            "no_data_limit": self.judge.no_data_limit,
            "indifference": self.judge.indifference,
            "deadline_windows": max(2, round(longest / rollout.window)),
            "design_effect": self.judge.design_effect,
            "traffic": None if percent is None else percent / 100,
            "steps": 1 + self.bakes,
            "guard": guard or percent is None,
            "answered": answered,
            "least_windows": least_windows,
            "looked": looked,
            "deadline_confidence": rollout.promote_with_confidence,
            "metrics": metrics,
            "values": values,
            **way,
        }
