"""Who may see what: the pages ask this of Airflow, and show nothing without it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from fastapi import HTTPException

from model_release.spec import ModelSpec
from model_release.web.sources import Models


class Access(Protocol):
    """Sign-in and permissions."""

    @property
    def user(self) -> Callable[..., Any]:
        """A FastAPI dependency: the signed-in user, or HTTPException 401."""

    def readable(self, user: Any, dag_ids: Collection[str]) -> set[str]:
        """Those of the DAGs whose runs the user may read."""

    def login(self, back: str) -> str:
        """Where to sign in, to come back to the address `back`."""


def dag_of(model: str) -> str:
    """The DAG that releases a model; whoever may read its runs may see its releases."""
    return f"release_{model}"


@dataclass
class Viewer:
    """One signed-in user and what may be seen. Made for each request, so that a permission taken away is gone."""

    access: Access
    user: Any
    models: Models

    @cached_property
    def specs(self) -> dict[str, ModelSpec]:
        """The models that the user may see."""
        allowed = self.access.readable(self.user, {dag_of(name) for name in self.models.specs})
        return {name: spec for name, spec in self.models.specs.items() if dag_of(name) in allowed}

    @property
    def troubles(self) -> tuple[str, ...]:
        """Model files that cannot be read concern whoever may see every other one; their own DAG is not known."""
        return self.models.troubles if len(self.specs) == len(self.models.specs) else ()

    def of_service(self, key: str) -> dict[str, ModelSpec]:
        """The user's models on a service. HTTPException 404 when there is none at all, 403 when none for this user."""
        every = [name for name, spec in self.models.specs.items() if spec.service.key == key]
        if not every:
            raise HTTPException(404, f"No model file names the service {key}.")
        found = {name: self.specs[name] for name in every if name in self.specs}
        if not found:
            raise HTTPException(403, f"You may not see the DAG of {' or '.join(every)}, and so not its releases.")
        return found

    def of_model(self, model: str) -> ModelSpec:
        """The model's file. HTTPException 404 where there is none, 403 where the user may not see its DAG."""
        if model not in self.models.specs:
            raise HTTPException(404, f"No model file is called {model}.")
        if model not in self.specs:
            raise HTTPException(403, f"You may not see the DAG {dag_of(model)}, and so not its releases.")
        return self.specs[model]
