"""The MLflow registry of a model: whether its source would be found. Never an error: a version that is built, and a
promotion, do not wait for a registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from model_release.errors import ReleaseError
from model_release.spec import ModelSpec

from .finding import Finding, ok, warning

if TYPE_CHECKING:
    from model_release.build.registry import Registry


def check(reach: Callable[[], Registry], spec: ModelSpec) -> Iterator[Finding]:
    """Whether the server answers, and what it has under the source's name now."""
    from model_release.build.registry import CURE, split

    uri = str(spec.source.mlflow)
    alias = split(uri)[1]
    try:
        found = reach().find(uri)
    except ReleaseError as trouble:
        yield warning("registry", str(trouble), f"can be fixed by {trouble.fixed_by}; {CURE}")
        return
    if found is None:
        cure = f"register a version and set the alias {alias}" if alias else "register a version"
        yield warning("registry", f"{spec.source} is no version that MLflow knows", cure)
    else:
        yield ok("registry", f"{spec.source} is version {found.version}")
