"""The parts of a model file that say how a checkpoint becomes a version: source, training, evaluation, build, signing,
and how many of them are kept."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

from croniter import croniter
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from .units import AzurePrefix, GcsPrefix, Part, Place, PositiveDuration, S3Prefix, Share


def check_cron(schedule: str | None) -> str | None:
    """The schedule, or a `ValueError` that says what one looks like."""
    if schedule is not None and not croniter.is_valid(schedule):
        raise ValueError(f"{schedule!r} is no cron expression; '0 6 * * 1' or '@weekly' is")
    return schedule


Schedule = Annotated[str | None, AfterValidator(check_cron)]


class Source(Part):
    """Where checkpoints come from: exactly one of the six. A folder or prefix holds one checkpoint, or candidates in
    folders named by time; a repository of the hub holds its commits, a registry its versions."""

    directory: str | None = Field(None, min_length=1, description="A folder; relative to the project's own.")
    s3: S3Prefix | None = Field(None, description="An S3 prefix, ending in `/`.")
    gcs: GcsPrefix | None = Field(None, description="A prefix of Google Cloud Storage: gs://bucket/folder/.")
    azure: AzurePrefix | None = Field(
        None,
        description="A prefix of Azure Blob Storage: abfss://container@account.dfs.core.windows.net/folder/.",
    )
    hub: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=96,
        description="A model repository of the Hugging Face hub: owner/name.",
    )
    mlflow: str | None = Field(
        None,
        pattern=r"^models:/[^/:@%'\"\\\x00-\x1f]+(@[A-Za-z0-9_-]+|/[0-9]+|/latest)$",
        max_length=300,
        description="A model of an MLflow registry: models:/name@alias, models:/name/7 or models:/name/latest.",
    )
    on_promotion: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]+$",
        max_length=100,
        description="Of a registry: the alias that a promotion moves to the promoted version, such as champion.",
    )
    watch: PositiveDuration | None = Field(
        None, description="How often to look for a new candidate, which starts a release; nothing for no looks."
    )
    revision: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        max_length=100,
        description="Of the hub: a branch, tag or commit. A branch (main, unless said) gives its newest commit.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        if len(self.place.keys() - {"revision"}) != 1:
            raise ValueError(
                "exactly one of directory, s3, gcs, azure, hub and mlflow says where checkpoints come from"
            )
        if self.revision is not None and self.hub is None:
            raise ValueError(
                "revision names a commit of the hub; a folder or prefix has none, and mlflow names its own"
            )
        if self.on_promotion is not None and self.mlflow is None:
            raise ValueError("on_promotion moves an alias of a registry; no other source has any")
        if self.on_promotion is not None and f"{self.mlflow}".endswith(f"@{self.on_promotion}"):
            raise ValueError(f"the source follows the alias {self.on_promotion}; on_promotion moves another one")
        if self.watch is not None and re.search(r"^models:/[^@]*/[0-9]+$", self.mlflow or ""):
            raise ValueError(f"{self.mlflow} is one version, and no other one will come; an alias can be watched")
        return self

    @property
    def place(self) -> dict[str, str]:
        """The place and the revision that are named, as `build.source` takes them."""
        named = {"directory", "s3", "gcs", "azure", "hub", "mlflow", "revision"}
        return dict(self.model_dump(include=named, exclude_none=True))

    def __str__(self) -> str:
        return self.s3 or self.gcs or self.azure or self.directory or self.mlflow or f"hub {self.hub}"


class Evaluation(Part):
    """Labelled images that each version answers before it gets traffic, and what its answers must reach.

    Images are in folders that bear their labels' names.
    """

    data: Place = Field(description="A folder relative to the project's own, or a store's prefix ending in `/`.")
    min_accuracy: Share | None = Field(None, description="The share of right answers, at least.")
    max_regressions: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="The share of images that stable answers right and this version wrong, at most."
    )
    min_recall: Share | dict[str, Share] | None = Field(
        None, description="For each label, or for those that are named: the share of its images found, at least."
    )
    batch: int = Field(16, ge=1, le=1024, description="Images at once.")


class Training(Part):
    """What makes new candidates, on a schedule of its own; each one starts a release.

    A callable of this project (`run`), called in a process of its own, or a container image (`image`) in the cluster.
    """

    schedule: Schedule = Field(None, description="A cron expression or preset; nothing for runs by hand only.")
    run: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$",
        description="module:function, called with (destination, log, **arguments); returns its metrics.",
    )
    image: str | None = Field(
        None, min_length=1, description="A container image that writes a checkpoint to $DESTINATION (S3)."
    )
    arguments: dict[str, str | int | float | bool] = Field(default_factory=dict)
    timeout: PositiveDuration = timedelta(hours=12)
    resources: dict[str, str] = Field(default_factory=dict, description="Of the pod: cpu, memory, nvidia.com/gpu.")
    service_account: str | None = Field(None, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)

    @model_validator(mode="after")
    def _exactly_one(self) -> Training:
        if (self.run is None) == (self.image is None):
            raise ValueError("exactly one of run and image says what trains")
        if (self.resources or self.service_account) and self.image is None:
            raise ValueError("resources and service_account are those of the pod that runs image; run has the worker's")
        return self


class Build(Part):
    """Where the heavy tasks run, on the worker or in a pod of their own, and how a model is exported."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    within: Literal["worker", "pod"] = Field("worker", alias="in")
    image: str | None = Field(
        None, min_length=1, description="With `in: pod`: an image with this project and its packages."
    )
    service_account: str | None = Field(None, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    resources: dict[str, str] = Field(
        default_factory=dict, description="cpu, memory, nvidia.com/gpu: request and limit."
    )
    fold: bool = Field(
        False,
        description="Fold each BatchNorm into the convolution before it: somewhat faster, and probabilities that may "
        "differ from the original's by 1e-4 instead of 1e-5.",
    )

    precision: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="What the network computes in. bfloat16 and int8 (Linear layers) are faster where the serving CPU "
        "has instructions for them, and other numbers: held to evaluation.max_regressions beside float32.",
    )

    @model_validator(mode="after")
    def _folding_is_exact(self) -> Build:
        if self.fold and self.precision != "float32":
            raise ValueError(f"fold is for precision float32, and this is {self.precision}; one of both is right")
        return self

    @model_validator(mode="after")
    def _pods_have_an_image(self) -> Build:
        if self.within == "pod" and self.image is None:
            raise ValueError("in: pod needs image: an image with this project and the packages of requirements.txt")
        if self.within == "worker" and (self.image or self.resources or self.service_account):
            raise ValueError("image, service_account and resources are those of a pod: in: pod")
        return self


class Signing(Part):
    """Signatures of versions, by `model-signing` with key files: paths on the worker, or relative to the project."""

    public_key: str = Field(min_length=1, description="PEM; every version is verified with it before it is staged.")
    private_key: str | None = Field(None, min_length=1, description="PEM; signs what this project publishes.")


class Keep(Part):
    """Which versions retention leaves in the store: the newest ones, those that are young, and every one in use."""

    versions: int = Field(20, ge=1)
    days: int = Field(180, ge=1)
