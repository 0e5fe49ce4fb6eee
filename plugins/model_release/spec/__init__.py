"""What a model file may say: all that a user writes to release a model.

`model_file` reads one. Nothing here talks to a network, and nothing heavy is imported: DAG files need it each time they
are parsed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, model_validator

from .build import Build, Evaluation, Keep, Schedule, Signing, Source, Training
from .judge import BUCKET_EDGES_MS, Judge, Metric, Profile, Value
from .people import Approval, Email, Notify, Slack, Webhook
from .serve import Resources, Rollout, Service
from .units import Name, Part, PositiveDuration, S3Prefix, format_duration, parse_duration

__all__ = [
    "BUCKET_EDGES_MS",
    "Approval",
    "Build",
    "Email",
    "Evaluation",
    "Judge",
    "Keep",
    "Metric",
    "ModelSpec",
    "Notify",
    "Profile",
    "Resources",
    "Rollout",
    "Service",
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
    store: S3Prefix
    schedule: Schedule = Field(None, description="A cron expression or preset; nothing for runs by hand only.")
    training: Training | None = None
    evaluation: Evaluation | None = None
    build: Build = Build()
    signing: Signing | None = None
    rollout: Rollout = Rollout()
    judge: Judge
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
        if self.source.hub:
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
    def _metrics_fit_the_mode(self) -> ModelSpec:
        if self.service.mode == "standard" and self.judge.profile not in ("istio", "istio-destination"):
            raise ValueError(
                f"Standard mode has no queue-proxy, whose metrics judge.profile {self.judge.profile} reads; istio or "
                "istio-destination is right"
            )
        return self

    @property
    def serving_runtime(self) -> str:
        """The name of the ServingRuntime, or ClusterServingRuntime, on the cluster."""
        return self.service.runtime or f"model-release-{self.runtime}"

    def asks_at(self, percent: int) -> bool:
        """Whether a person may be asked at this step, after its watch and before its decision."""
        if self.approval == "before_promote":
            return percent == self.rollout.steps[-1]
        return self.approval == "on_inconclusive"

    def policy(self, percent: int | None, *, guard: bool = False, again: int = 0) -> dict[str, Any]:
        """What `judging.Policy.from_dict` reads, for the step at `percent` of the traffic.

        `None` is the bake after promotion: the canary has become the stable revision, there is nothing beside it,
        and limits against stable cannot be judged. The allowance for false roll-backs is shared by all the steps,
        the bake, and the watches beside a question.

        Args:
            guard: the canary was judged already; these windows may stop it and never promote it.
            again: how many times a person has asked to watch on at this step, this one counted. Each watch has half
                the allowance of the one before, so that all of them together have no more than one.
        """
        asked = sum(self.asks_at(step) for step in self.rollout.steps)
        looks = len(self.rollout.steps) + bool(self.rollout.bake) + 2 * asked
        metrics = [metric.limits() for metric in self.judge.metrics]
        values = [value.model_dump(exclude_none=True) for value in self.judge.values]
        if percent is None:
            values = [value for value in values if "max_ratio" not in value]
            metrics = [
                {k: v for k, v in metric.items() if k not in ("max_ratio", "floor")}
                for metric in metrics
                if "max_rate" in metric
            ]
        return {
            "false_rollback": self.judge.false_rollback,
            "false_promotion": self.judge.false_promotion,
            "min_requests": self.judge.min_requests,
            "warm_up": self.judge.warm_up,
            "no_data_limit": self.judge.no_data_limit,
            "indifference": self.judge.indifference,
            "deadline_windows": max(
                2, round((self.rollout.bake if percent is None else self.rollout.deadline) / self.rollout.window)
            ),
            "design_effect": self.judge.design_effect,
            "traffic": None if percent is None else percent / 100,
            "steps": looks * 2**again,
            "guard": guard or percent is None,
            "metrics": metrics,
            "values": values,
        }
