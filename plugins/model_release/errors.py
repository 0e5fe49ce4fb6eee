"""What can go wrong in a release, one exception for each kind of trouble.

Every class says who can fix it (`fixed_by`) and whether waiting can (`transient`). A task's retry policy
asks nothing else: a transient fault is tried again with back-off, a refusal is not (it would only be refused
again, later, and hide the reason meanwhile).

The message of each is one line: what is wrong, where, and what would be right.
"""

from __future__ import annotations

from typing import ClassVar


class ReleaseError(Exception):
    """Base of all troubles of a release; never raised itself."""

    fixed_by: ClassVar[str] = "whoever reads this"
    transient: ClassVar[bool] = False

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class SpecError(ReleaseError):
    """A model file, a form or a conf says something that cannot be released."""

    fixed_by = "the author of the model file or of the run's form"


class NotReady(ReleaseError):
    """The preflight found what a release would fail of."""

    fixed_by = "whoever the finding names"


class NotReadyYet(ReleaseError):
    """Something that a release needs does not answer now or is not there yet, the preflight found."""

    fixed_by = "time, or whoever the finding names"
    transient = True


class CheckpointError(ReleaseError):
    """The source holds no checkpoint that can be exported: files missing, not an image classifier, pickled."""

    fixed_by = "the owner of the checkpoint"


class ParityError(ReleaseError):
    """The exported model does not answer as the original does."""

    fixed_by = "the owner of the checkpoint"


class ArchiveError(ReleaseError):
    """The archive cannot be made, or does not answer a real image in a bare environment."""

    fixed_by = "the owner of the checkpoint or of the handler"


class EvaluationFailed(ReleaseError):
    """The version answers labelled images worse than its model file allows."""

    fixed_by = "the owner of the model"


class TrainingFailed(ReleaseError):
    """Training ended without a candidate."""

    fixed_by = "the owner of the training"


class SourceUnavailable(ReleaseError):
    """The hub or the registry does not answer now, or asks to be asked less often; or a source was changed while it was
    read."""

    fixed_by = "time, or whoever runs the hub or the registry, or writes to the source"
    transient = True


class SignatureRefused(ReleaseError):
    """A version is not signed by the key that its model file names, or was changed after it was signed."""

    fixed_by = "whoever signs versions"


class StoreRefused(ReleaseError):
    """The store says no: no such bucket, refused credentials, missing permission."""

    fixed_by = "whoever runs the model store"


class StoreUnavailable(ReleaseError):
    """The store does not answer now."""

    fixed_by = "time, or whoever runs the model store"
    transient = True


class StoreContested(StoreUnavailable):
    """The store has kept a write from overwriting what somebody else wrote."""


class VersionDamaged(ReleaseError):
    """A version in the store is not what its `version.json` says, or is none."""

    fixed_by = "whoever wrote to the model store by hand"


class ClusterUnavailable(ReleaseError):
    """The Kubernetes API does not answer, is overloaded, or somebody wrote at the same moment (409)."""

    fixed_by = "time, or whoever runs the cluster"
    transient = True


class ClusterRefused(ReleaseError):
    """The Kubernetes API says no: 401, 403 with the missing rule, 404 of the kind, 422 or a webhook."""

    fixed_by = "whoever runs the cluster"


class ForeignService(ReleaseError):
    """The InferenceService exists and is not one that this project released."""

    fixed_by = "the owner of the InferenceService"


class ServiceBusy(ReleaseError):
    """Another release holds the service's lease."""

    fixed_by = "time: the other release ends or is ended"


class RevisionFailed(ReleaseError):
    """The new revision never became ready; carries KServe's own message."""

    fixed_by = "the owner of the model"


class SmokeFailed(ReleaseError):
    """The new revision is ready and does not answer a real image as the archive did."""

    fixed_by = "the owner of the model"


class ShadowFailed(ReleaseError):
    """Before any traffic the new revision answers sample pictures otherwise than stable, more often than its model file
    allows; or there are too few of them to tell."""

    fixed_by = "the owner of the model, or whoever keeps the samples"


class CanaryLost(ReleaseError):
    """What runs is not what this release opened: somebody or something changed revision, template or split."""

    fixed_by = "whoever changed the InferenceService"


class NotSettled(ReleaseError):
    """The traffic could not be brought back to a proven revision. An incident."""

    fixed_by = "a person, now"


class MetricsUnavailable(ReleaseError):
    """Prometheus does not answer now."""

    fixed_by = "time, or whoever runs Prometheus"
    transient = True


class MetricsRefused(ReleaseError):
    """Prometheus refuses the query or the credentials."""

    fixed_by = "the author of the model file, or whoever runs Prometheus"


class ReleaseFailed(ReleaseError):
    """The outcome of a release that came to no verdict: its run fails with the sentence of what went wrong."""

    fixed_by = "whoever the failed task names"


class RolledBack(ReleaseError):
    """The outcome of a release that was judged and rolled back: its run fails with the judge's sentence."""

    fixed_by = "the owner of the model"
