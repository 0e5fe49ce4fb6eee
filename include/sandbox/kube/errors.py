"""Refusals as Kubernetes says them: an HTTP code and a `Status` body that clients know how to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.interfaces import Manifest
    from sandbox.kube.resources import Kind


class ApiError(Exception):
    """A request that is refused; `reason` is one of Kubernetes' own words (NotFound, Conflict, …)."""

    def __init__(self, code: int, reason: str, message: str, causes: Sequence[Manifest] = ()) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.causes = code, reason, message, list(causes)
        self.details: Manifest = {}

    def about(self, kind: Kind, name: str | None) -> ApiError:
        """The same error, with the object it speaks of in `details` (kubectl and clients read it)."""
        self.details = {"group": kind.group, "kind": kind.plural} | ({"name": name} if name else {})
        return self

    def body(self) -> Manifest:
        details = dict(self.details) | ({"causes": self.causes} if self.causes else {})
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        } | ({"details": details} if details else {})


def not_found(kind: Kind, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{kind.id} "{name}" not found').about(kind, name)


def no_such_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def already_exists(kind: Kind, name: str) -> ApiError:
    return ApiError(409, "AlreadyExists", f'{kind.id} "{name}" already exists').about(kind, name)


def conflict(kind: Kind, name: str) -> ApiError:
    text = "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {kind.id} "{name}": {text}'
    return ApiError(409, "Conflict", message).about(kind, name)


def invalid(kind: Kind, name: str, *problems: tuple[str, str]) -> ApiError:
    """422 with one cause for each (field, problem)."""
    listed = [f"{field}: {problem}" for field, problem in problems]
    text = listed[0] if len(listed) == 1 else f"[{', '.join(listed)}]"
    causes = [{"reason": "FieldValueInvalid", "message": p, "field": f} for f, p in problems]
    title = f"{kind.title}.{kind.group}" if kind.group else kind.title
    return ApiError(422, "Invalid", f'{title} "{name}" is invalid: {text}', causes).about(kind, name)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def denied(webhook: str, message: str) -> ApiError:
    """An admission webhook said no. KServe's and Knative's refusals reach the user in this form."""
    return ApiError(403, "Forbidden", f'admission webhook "{webhook}" denied the request: {message}')


def forbidden(kind: Kind, verb: str, namespace: str, name: str | None, user: str = "sandbox") -> ApiError:
    """RBAC's refusal, naming the rule that is missing."""
    subject = f'{kind.id} "{name}"' if name else kind.id
    where = f' in the namespace "{namespace}"' if kind.namespaced else " at the cluster scope"
    text = (
        f'{subject} is forbidden: User "{user}" cannot {verb} resource "{kind.plural}" '
        f'in API group "{kind.group}"{where}'
    )
    return ApiError(403, "Forbidden", text).about(kind, name)


def unsupported_media_type(accepted: str) -> ApiError:
    text = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    return ApiError(415, "UnsupportedMediaType", text)
