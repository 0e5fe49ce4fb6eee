"""What HTTPRoutes say of a service's traffic. Pure functions over the objects as the API gives them.

KServe (httproute_reconciler.go of 0.21) writes the same backends into each rule of a service's routes; the gateway says
in a route's status that it has taken them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What the Gateway API's specification has every gateway say of a route.
_NEEDED = ("Accepted", "ResolvedRefs")


def shares(routes: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Percent of each Service; empty while the routes disagree, while the gateway has not taken one, or without any.

    A Service at 0 that is named is in it: that it is named at all tells that KServe programs weights.
    """
    told = [_weights(route) for route in routes]
    return told[0] if told and all(map(_taken, routes)) and all(one == told[0] for one in told) else {}


def _weights(route: dict[str, Any]) -> dict[str, int]:
    """Percent of each Service, when all rules of the route agree. A single backend without a weight has all."""
    found: list[dict[str, int]] = []
    for rule in (route.get("spec") or {}).get("rules") or []:
        refs = {str(ref["name"]): int(ref.get("weight", 1)) for ref in rule.get("backendRefs") or []}
        total = sum(refs.values())
        found.append({name: round(100 * weight / total) for name, weight in refs.items()} if total else {})
    return found[0] if found and all(one == found[0] for one in found) else {}


def _taken(route: dict[str, Any]) -> bool:
    """Whether every gateway that the route names has accepted this very generation of it.

    Status also keeps what gateways said that the route names no more, or whose controller is gone
    (envoyproxy/gateway#5656): nobody takes that back, and it counts for nothing.
    """
    generation, namespace = int(route["metadata"].get("generation") or 0), str(route["metadata"].get("namespace"))
    named = {_parent(ref, namespace) for ref in (route.get("spec") or {}).get("parentRefs") or []}
    said: dict[tuple[str, ...], list[bool]] = {one: [] for one in named}
    for parent in (route.get("status") or {}).get("parents") or []:
        which = _parent(parent.get("parentRef") or {}, namespace)
        if which in said:
            said[which].append(_accepts(parent, generation))
    # Two controllers may speak of one gateway, of which one is gone: who has taken this generation is alive.
    return bool(said) and all(any(one) for one in said.values())


def _parent(ref: dict[str, Any], namespace: str) -> tuple[str, ...]:
    """A reference to a gateway with what the Gateway API fills in where it is left out."""
    fields = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": namespace, "sectionName": ""}
    given = {key: str(value) for key, value in ref.items() if value is not None}
    return (*({**fields, **given}[key] for key in fields), given.get("name", ""), given.get("port", ""))


def _accepts(parent: dict[str, Any], generation: int) -> bool:
    said = {str(one["type"]): one for one in parent.get("conditions") or [] if one["type"] in _NEEDED}
    return "Accepted" in said and all(
        one.get("status") == "True" and int(one.get("observedGeneration") or generation) >= generation
        for one in said.values()
    )
