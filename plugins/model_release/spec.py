"""What a model file may say: all that a user writes to release a model.

`model_file` reads one. Nothing here talks to a network, and nothing heavy is imported: DAG files need it each time they
are parsed.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from croniter import croniter
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)

Profile = Literal["knative", "knative-otel", "istio"]

# The upper edges of the latency histogram that each stack exposes, in milliseconds. A share of slow requests can be
# read exactly only at one of them; between two it would be a guess (facts/kserve.md 5.1, 5.3; Istio's own list is in
# its `istio_request_duration_milliseconds` definition).
BUCKET_EDGES_MS: dict[Profile, tuple[float, ...]] = {
    "knative": (
        *(5, 10, 20, 40, 60, 80, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800, 900),
        *(1000, 2000, 5000, 10000, 20000, 50000, 100000),
    ),
    "knative-otel": (5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000),
    "istio": (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000),
}

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: object) -> timedelta:
    """`500ms`, `10s`, `30m`, `2h`, `1d` as a timedelta; everything else is a `ValueError` that says how to write it."""
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", str(value).strip())
    if match is None:
        hint = f"{value}s" if isinstance(value, int | float) else "10s"
        raise ValueError(f"{value!r} is no duration; a number with ms, s, m, h or d is, such as {hint}")
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]])


def format_duration(value: timedelta) -> str:
    """The shortest exact form that `parse_duration` reads back."""
    milliseconds = round(value.total_seconds() * 1000)
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % round(_UNITS[unit] * 1000) == 0:
            return f"{milliseconds // round(_UNITS[unit] * 1000)}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than 0s")
    return value


_DURATION_SCHEMA = {"type": "string", "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)$", "examples": ["10s", "30m"]}
Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(_DURATION_SCHEMA),
]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]

# A DNS label (RFC 1035): KServe's own rule for InferenceServices, and short enough for `<tag>-<name>-predictor-00001`.
DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
Name = Annotated[str, Field(pattern=DNS_LABEL, max_length=40)]
S3Prefix = Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/([A-Za-z0-9._-]+/)*$")]
Share = Annotated[float, Field(gt=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Where checkpoints come from: exactly one of the two. A folder of candidates named by time, or one checkpoint."""

    directory: str | None = Field(None, min_length=1, description="A folder; relative to the project's own.")
    s3: S3Prefix | None = Field(None, description="An S3 prefix, ending in `/`.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        if (self.directory is None) == (self.s3 is None):
            raise ValueError("exactly one of directory and s3 says where checkpoints come from")
        return self

    def __str__(self) -> str:
        return self.s3 or str(self.directory)


class Resources(_Part):
    """Requests and limits of the predictor's container, as Kubernetes quantities."""

    cpu: Annotated[str, BeforeValidator(str), Field(pattern=r"^\d+(\.\d+)?m?$")] = "1"
    memory: str = Field("2Gi", pattern=r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")


class Service(_Part):
    """The InferenceService that the model is released on. Several models may name the same one."""

    name: Name
    namespace: Name
    min_replicas: int = Field(1, ge=1, description="KServe starts as many pods before a revision is ready.")
    max_replicas: int = Field(1, ge=1)
    container_concurrency: int = Field(0, ge=0, description="Requests at once for each pod; 0 for no limit.")
    timeout: PositiveDuration = timedelta(seconds=60)
    service_account: Name | None = None
    runtime: str = Field("kserve-torchserve", pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Service:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self

    @property
    def key(self) -> str:
        """`namespace/name`, as logs, records and the lease call it."""
        return f"{self.namespace}/{self.name}"


class Rollout(_Part):
    """How the traffic moves, and how long each look waits."""

    steps: tuple[int, ...] = Field((10, 30), min_length=1, max_length=10)
    window: PositiveDuration = Field(timedelta(seconds=10), description="One look's counts; at least two scrapes.")
    deadline: PositiveDuration = Field(
        timedelta(minutes=30), description="For each step; then: inconclusive, rolled back."
    )
    bake: Duration = Field(timedelta(0), description="Watched on after promotion for so long; 0s for not at all.")
    ready_within: PositiveDuration = Field(
        timedelta(minutes=15), description="For the new revision to become ready, image pull included."
    )
    wait_for_lease: Duration = Field(
        timedelta(hours=1), description="In line behind another release of the service; 0s fails at once."
    )

    @field_validator("steps")
    @classmethod
    def _steps_rise(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        for step in steps:
            if not 1 <= step <= 99:
                raise ValueError(f"{step} is not a step; a canary takes 1 to 99 percent, and 100 follows by itself")
        if sorted(set(steps)) != list(steps):
            raise ValueError(f"{list(steps)} does not rise; {sorted(set(steps))} would")
        return steps

    @model_validator(mode="after")
    def _deadline_holds_windows(self) -> Rollout:
        if self.deadline < 2 * self.window:
            given, least = format_duration(self.deadline), format_duration(2 * self.window)
            raise ValueError(f"deadline {given} is shorter than two windows; {least} is the least")
        return self


class Metric(_Part):
    """A share of bad requests. Bad is a response code (`codes`, 5xx unless said) or a duration (`above`)."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)
    codes: str | None = Field(None, pattern=r"^[1-5](\d\d|xx)$", description="Bad response codes: 5xx, 503, …")
    above: PositiveDuration | None = Field(None, description="Bad is slower than this; on a bucket's edge.")
    max_rate: Share | None = Field(None, description="The share that may never be exceeded.")
    max_ratio: float | None = Field(None, ge=1, description="Times stable's share that is still accepted.")
    floor: Share | None = Field(None, description="Stable's share counts as at least this, with max_ratio.")
    observe: bool = Field(False, description="Computed and shown; never decides.")

    @model_validator(mode="after")
    def _has_one_meaning(self) -> Metric:
        if self.codes is not None and self.above is not None:
            raise ValueError("codes and above are two metrics; give each a name of its own")
        if self.max_rate is None and self.max_ratio is None and not self.observe:
            raise ValueError("no limit: max_rate, max_ratio or both; or observe: true to only show it")
        if self.max_ratio is not None and self.floor is None:
            raise ValueError("max_ratio needs a floor, or one bad request against a perfect stable would be fatal")
        if self.floor is not None and self.max_ratio is None:
            raise ValueError("floor has no meaning without max_ratio")
        return self

    def limits(self) -> dict[str, Any]:
        """The metric as `judging.Policy` reads it."""
        given = {"max_rate": self.max_rate, "max_ratio": self.max_ratio, "floor": self.floor}
        limits: dict[str, Any] = {"name": self.name, **{k: v for k, v in given.items() if v is not None}}
        if self.observe:
            limits["observe"] = True
        return limits


_PLACEHOLDERS = ("namespace", "revision", "service")


class Value(_Part):
    """A number that is no share (queue depth, memory, a business figure), held against a threshold. It can stop a
    release and never promotes one."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)
    query: str = Field(
        min_length=1,
        description='PromQL for one number; "$revision", "$namespace" and "$service" stand for what is asked about.',
    )
    max: float | None = Field(None, allow_inf_nan=False)
    min: float | None = Field(None, allow_inf_nan=False)
    max_ratio: float | None = Field(None, gt=0, allow_inf_nan=False, description="Times stable's value, at most.")
    failures_allowed: int = Field(0, ge=0)
    inconclusive_allowed: int = Field(0, ge=0)
    consecutive_errors_allowed: int = Field(4, ge=0)
    observe: bool = Field(False, description="Measured and shown; never decides.")

    @field_validator("query")
    @classmethod
    def _placeholders_are_known(cls, query: str) -> str:
        for found in re.finditer(r"\$(\w*)", query):
            if found[1] not in _PLACEHOLDERS:
                known = ", ".join(f"${name}" for name in _PLACEHOLDERS)
                raise ValueError(f"{found[0]!r} stands for nothing; {known} do")
        return query

    @model_validator(mode="after")
    def _has_a_limit(self) -> Value:
        if self.max is None and self.min is None and self.max_ratio is None and not self.observe:
            raise ValueError("no limit: max, min or max_ratio; or observe: true to only show it")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; every value would fail")
        return self


class Judge(_Part):
    """When evidence is enough. The mathematics is in `model_release/judging`."""

    profile: Profile = Field("knative-otel", description="Which stack's metrics Prometheus holds.")
    metrics: tuple[Metric, ...] = Field(min_length=1)
    values: tuple[Value, ...] = ()
    false_rollback: Share = Field(0.01, description="At most this chance that a release rolls back a good canary.")
    false_promotion: Share = Field(0.05, description="At most this chance to promote one beyond a limit.")
    min_requests: int = Field(100, ge=1, description="On the canary, in each step, before it may go on.")
    warm_up: int = Field(0, ge=0, description="Windows after each opening that are shown and not judged.")
    no_data_limit: int = Field(6, ge=1, description="So many windows without data in a row end the watch.")
    design_effect: float = Field(
        4.0,
        ge=1,
        allow_inf_nan=False,
        description="Burstiness of failures, assumed until stable's own windows show it; 1 where requests fail alone.",
    )

    @model_validator(mode="after")
    def _metrics_are_readable(self) -> Judge:
        names = [metric.name for metric in self.metrics] + [value.name for value in self.values]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two metrics are called {doubled[0]!r}")
        if all(metric.observe for metric in self.metrics):
            raise ValueError("every metric is only observed; at least one must decide")
        edges = BUCKET_EDGES_MS[self.profile]
        for metric in self.metrics:
            if metric.above is None:
                continue
            limit = metric.above.total_seconds() * 1000
            if limit not in edges:
                near = sorted(sorted(edges, key=lambda edge: abs(edge - limit))[:2])
                named = " or ".join(format_duration(timedelta(milliseconds=edge)) for edge in near)
                raise ValueError(
                    f"metrics.{metric.name}.above: {format_duration(metric.above)} is on no bucket's edge of profile "
                    f"{self.profile}, so the share could only be guessed; {named} can be read exactly"
                )
        return self


class ModelSpec(_Part):
    """One model file."""

    model: Name
    source: Source
    service: Service
    store: S3Prefix
    schedule: str | None = Field(None, description="A cron expression or preset; nothing for runs by hand only.")
    rollout: Rollout = Rollout()
    judge: Judge

    @field_validator("schedule")
    @classmethod
    def _schedule_is_cron(cls, schedule: str | None) -> str | None:
        if schedule is not None and not croniter.is_valid(schedule):
            raise ValueError(f"{schedule!r} is no cron expression; '0 6 * * 1' or '@weekly' is")
        return schedule

    def policy(self, percent: int | None) -> dict[str, Any]:
        """What `judging.Policy.from_dict` reads, for the step at `percent` of the traffic.

        `None` is the bake after promotion: the canary has become the stable revision, there is nothing beside it,
        and limits against stable cannot be judged. The allowance for false roll-backs is shared by all the steps and
        the bake.
        """
        looks = len(self.rollout.steps) + (1 if self.rollout.bake else 0)
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
            "design_effect": self.judge.design_effect,
            "traffic": None if percent is None else percent / 100,
            "steps": looks,
            "metrics": metrics,
            "values": values,
        }


if __name__ == "__main__":
    import json

    print(json.dumps(ModelSpec.model_json_schema(), indent=2))
