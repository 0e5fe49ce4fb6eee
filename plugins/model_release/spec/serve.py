"""The `service` and `rollout` parts of a model file: where a model runs, and how the traffic moves to it."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from .units import SLICE, Duration, Name, Part, Place, PositiveDuration, Share, format_duration


class Resources(Part):
    """Requests and limits of the predictor's container, as Kubernetes quantities, and how many GPUs it has."""

    cpu: Annotated[str, BeforeValidator(str), Field(pattern=r"^\d+(\.\d+)?m?$")] = "1"
    memory: str = Field("2Gi", pattern=r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")
    gpu: int = Field(
        0, ge=0, le=16, description="GPUs (nvidia.com/gpu), request and limit; the network uses the first."
    )

    @property
    def quantities(self) -> dict[str, str | None]:
        """Request and limit; what is not asked for is None."""
        return {"cpu": self.cpu, "memory": self.memory, "nvidia.com/gpu": str(self.gpu) if self.gpu else None}


class Batching(Part):
    """Requests that wait for each other, and go through the network together."""

    max: int = Field(ge=2, le=64, description="Requests at once, at most.")
    within: PositiveDuration = Field(
        timedelta(milliseconds=5), description="How long the first of them waits for others; whole milliseconds."
    )

    @field_validator("within")
    @classmethod
    def _whole_milliseconds(cls, within: timedelta) -> timedelta:
        if within % timedelta(milliseconds=1):
            raise ValueError(f"{format_duration(within)} is not whole milliseconds; 5ms is, for example")
        return within

    @property
    def told(self) -> dict[str, int]:
        """As servers take it."""
        return {"max": self.max, "within_ms": self.within // timedelta(milliseconds=1)}


class Service(Part):
    """The InferenceService that the model is released on. Several models may name the same one."""

    name: Name
    namespace: Name
    mode: Literal["knative", "standard"] = Field(
        "knative", description="KServe's deployment mode. standard: a canary needs KServe 0.21 and the Gateway API."
    )
    min_replicas: int = Field(1, ge=1, description="KServe starts as many pods before a revision is ready.")
    max_replicas: int = Field(1, ge=1)
    container_concurrency: int = Field(0, ge=0, description="Requests at once for each pod; 0 for no limit.")
    timeout: PositiveDuration = timedelta(seconds=60)
    batching: Batching | None = Field(
        None, description="Requests of several clients go through the network together; nothing for one by one."
    )
    service_account: Name | None = None
    runtime: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        description="The ServingRuntime's name on the cluster; model-release-<runtime> unless said.",
    )
    resources: Resources = Resources()
    slices: tuple[Annotated[str, Field(pattern=SLICE, max_length=40)], ...] = Field(
        (),
        max_length=5,
        description="What the handler counts its answers by: country, from the request's header x-slice-country.",
    )

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Service:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self

    @model_validator(mode="after")
    def _batches_can_be_full(self) -> Service:
        if self.batching is None:
            return self
        if 0 < self.container_concurrency < self.batching.max:
            raise ValueError(
                f"batching.max {self.batching.max} requests never meet in a pod that container_concurrency lets "
                f"{self.container_concurrency} into; at most that, or container_concurrency: 0, is right"
            )
        if self.batching.within >= self.timeout:
            raise ValueError(
                f"batching.within {format_duration(self.batching.within)} is no less than timeout "
                f"{format_duration(self.timeout)}: the first request of each batch would be given up; 5ms is usual"
            )
        return self

    @property
    def timeout_seconds(self) -> int:
        """`timeout` as Kubernetes and servers take it: whole seconds, one at least."""
        return max(1, round(self.timeout.total_seconds()))

    @property
    def key(self) -> str:
        """`namespace/name`, as logs, records and the lease call it."""
        return f"{self.namespace}/{self.name}"


class Ramp(Part):
    """The canary's share is chosen as the evidence allows, so that a bad one hurts about `budget` requests at most."""

    budget: float = Field(20, gt=0, le=1e9, allow_inf_nan=False, description="Requests that a bad canary may hurt.")
    most: int = Field(35, description="The largest share before the promotion, in percent.")

    @field_validator("most")
    @classmethod
    def _is_a_share(cls, most: int) -> int:
        if most < 1:
            raise ValueError(f"{most} is below the first level, which is 1 percent; 1 to 99 is right, 35 for example")
        if most > 99:
            raise ValueError(f"{most} is more than a canary can take beside stable; 1 to 99 is right, 35 for example")
        return most


# The confidence with which a comparison of pictures bounds the share of changed answers (`judging.pairs`).
_SURE = 0.95


class Shadow(Part):
    """Pictures such as users send, which stable and the canary at 0 % both answer before any user meets the canary."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    place: Place = Field(
        alias="from",
        description="Sample pictures: a folder relative to the project's own, or a store's prefix ending in `/`.",
    )
    requests: int = Field(500, ge=1, le=10_000, description="Pictures that both are asked for, at most.")
    max_changed: Share | None = Field(
        None,
        description="The share of answers that may be another label: it is to be shown below this, with 95 % "
        "confidence. Nothing: shown, and never decides.",
    )
    if_missing: Literal["refuse", "go"] = Field(
        "refuse", description="Where there are no samples, or too few to show it: the release ends, or goes on without."
    )

    @model_validator(mode="after")
    def _could_show_it(self) -> Shadow:
        if self.max_changed is None:
            return self
        least = math.ceil(math.log(1 - _SURE) / math.log1p(-self.max_changed))
        if self.requests < least:
            raise ValueError(
                f"{self.requests} pictures cannot show that less than {100 * self.max_changed:g} % of the answers "
                f"change, even where none does; requests: {least} is the least"
            )
        return self


# The deadline, and the bake, of a release of which nothing is known beforehand.
_UNPLANNED = timedelta(minutes=30)
_UNPLANNED_BAKE = timedelta(minutes=10)


class Rollout(Part):
    """How the traffic moves, and how long each look waits.

    `steps` is empty where a ramp chooses the shares.
    """

    ramp: Ramp | None = Field(None, description="Instead of steps: the shares are chosen as the evidence allows.")
    steps: tuple[int, ...] = Field((10, 30), max_length=10, description="The canary's percents, one after the other.")
    shadow: Shadow | None = Field(None, description="Sample pictures that both sides answer before any traffic.")
    window: PositiveDuration = Field(timedelta(seconds=10), description="One look's counts; at least two scrapes.")
    deadline: PositiveDuration | None = Field(
        None,
        description="For the whole canary, from its opening; then: inconclusive, rolled back. Unless said, the plan "
        "chooses it by stable's past and traffic, from 10 minutes to a day; 30m where those are not known.",
    )
    promote_with_confidence: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="At the deadline without a decision: promoted if it is shown with this confidence to be below "
        "indifference times each limit, and baked for twice as long.",
    )
    if_too_slow: Literal["refuse", "go"] = Field(
        "refuse",
        description="A release whose deadline would end more good canaries than it lets through, by its past traffic, "
        "is refused by the preflight, or tried all the same.",
    )
    bake: Duration | None = Field(
        None,
        description="Watched on after the promotion for so long; 0s for not at all. Unless said, the plan chooses it "
        "by stable's past and traffic, from 5 minutes to an hour; 10m where those are not known.",
    )
    ready_within: PositiveDuration = Field(
        timedelta(minutes=15), description="For the new revision to become ready, image pull included."
    )
    wait_for_lease: Duration = Field(
        timedelta(hours=1), description="In line behind another release of the service; 0s fails at once."
    )

    @property
    def longest(self) -> timedelta:
        """The deadline: of a release that began, the one that was chosen for it."""
        return self.deadline or max(_UNPLANNED, 2 * self.window)

    @property
    def baked(self) -> timedelta:
        """The bake: of a release that began, the one that was chosen for it."""
        return max(_UNPLANNED_BAKE, 2 * self.window) if self.bake is None else self.bake

    @property
    def path(self) -> str:
        """The way of the traffic, for people: `10 % → 30 % → 100 %`."""
        if self.ramp is not None:
            return f"up to {self.ramp.most} % as the evidence allows → 100 %"
        return " → ".join(f"{percent} %" for percent in (*self.steps, 100))

    @field_validator("steps")
    @classmethod
    def _steps_rise(cls, steps: tuple[int, ...], given: ValidationInfo) -> tuple[int, ...]:
        if steps and given.data.get("ramp") is not None:
            raise ValueError("says which shares the canary gets, and ramp chooses them; one of both is right")
        if not steps and given.data.get("ramp", steps) is None:
            raise ValueError("has at least 1 share, [10, 30] for example, where there is no ramp")
        for step in steps:
            if not 1 <= step <= 99:
                raise ValueError(f"{step} is not a step; a canary takes 1 to 99 percent, and 100 follows by itself")
        if sorted(set(steps)) != list(steps):
            raise ValueError(f"{list(steps)} does not rise; {sorted(set(steps))} would")
        return steps

    @model_validator(mode="before")
    @classmethod
    def _a_ramp_has_no_steps(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("ramp") is not None:
            return {"steps": (), **given}
        return given

    @model_validator(mode="after")
    def _what_is_promoted_on_less_is_watched_on(self) -> Rollout:
        if self.promote_with_confidence is not None and not self.baked:
            raise ValueError(
                "promote_with_confidence promotes on less evidence and watches on for twice the bake, and there is "
                "none; bake: 10m is right, for example"
            )
        return self

    @model_validator(mode="after")
    def _deadline_holds_windows(self) -> Rollout:
        if self.deadline is not None and self.deadline < 2 * self.window:
            given, least = format_duration(self.deadline), format_duration(2 * self.window)
            raise ValueError(f"deadline {given} is shorter than two windows; {least} is the least")
        return self
