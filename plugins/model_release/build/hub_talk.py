"""What every talk with the Hugging Face hub shares: its time limit, and whose trouble an error is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from model_release.errors import CheckpointError, ReleaseError, SourceUnavailable, SpecError

CURE = "set a token as password of the Airflow connection `hub`, or as HF_TOKEN"

#: Seconds without a byte after which an answer is no longer waited for. huggingface_hub would wait for ever.
PATIENCE = 60.0


@contextmanager
def talking_about(about: str, revision: str | None = None) -> Iterator[None]:
    """Turns huggingface_hub's errors into `CheckpointError` (asking again does not help) or `SourceUnavailable` (it
    may), each with one line about `about`. A full disk and the like go through as they are."""
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hooks = get_session().event_hooks["request"]
    if _limit not in hooks:
        hooks.append(_limit)
    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(error, about, revision) from error
    except LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refusal(error.__cause__, about, revision) from error
        if error.__cause__ is None:
            raise CheckpointError(f"{about} is not there; let it be fetched once while the hub is reached") from error
        raise SourceUnavailable(f"{about}: the hub does not answer: {_first_line(error.__cause__)}") from error
    except HFValidationError as error:
        raise SpecError(f"{about}: {error}") from error
    except httpx2.HTTPError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise CheckpointError(f"{about}: the server's certificate is not trusted: {error}") from error
        raise SourceUnavailable(f"{about}: the hub does not answer: {_first_line(error)}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # A file of another size than the hub said; or an answer that is none, as a proxy's page.
        raise SourceUnavailable(f"{about}: the hub's answer is no good: {_first_line(error)}") from error


def _limit(request: Any) -> None:
    """Gives a request of huggingface_hub's HTTP client the time limits that it lacks."""
    limits = request.extensions.get("timeout") or {}
    request.extensions = {
        **request.extensions,
        "timeout": {kind: limits.get(kind) or PATIENCE for kind in ("connect", "read", "write", "pool")},
    }


def _refusal(error: Any, about: str, revision: str | None) -> ReleaseError:
    """What an answer of 4xx or 5xx means for a release."""
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RevisionNotFoundError

    status, headers = error.response.status_code, error.response.headers
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{about} has no revision {revision}; a branch, a tag or a full commit of it is right")
    if isinstance(error, RemoteEntryNotFoundError):
        return CheckpointError(f"{about} is not there")
    if isinstance(error, GatedRepoError) or status == 403:
        return CheckpointError(
            f"{about} is open only to those whom its owner lets in: accept its conditions there, and {CURE} ({status})"
        )
    if status == 401 and "Invalid" in headers.get("X-Error-Message", ""):
        return CheckpointError(f"{about}: the hub does not know the token; {CURE} ({status})")
    if status in (401, 404):
        return CheckpointError(f"{about} is private or does not exist: mend the name, or {CURE} ({status})")
    if status == 429:
        pause = headers.get("Retry-After")
        again = f"in {pause} s" if pause and pause.isdigit() else "later"
        return SourceUnavailable(f"{about}: the hub has been asked too often; it may be asked again {again} (429)")
    if status >= 500 or status == 408:
        return SourceUnavailable(f"{about}: the hub fails for now ({status})")
    return CheckpointError(f"{about}: the hub refuses to answer ({status})")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
