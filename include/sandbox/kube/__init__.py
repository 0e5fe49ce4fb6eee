"""A small server that speaks the Kubernetes API, with KServe's and Knative's controllers stood in by their rules.

`Cluster` is all that the rest of the sandbox uses. Below it, from the inside out:

* the rules, pure functions over objects: `kserve_spec`, `kserve_status`, `knative`, `pods`, `admission`, `schema`;
* who applies them: `reconcilers` and `controller`;
* what a Kubernetes API server does with any object: `registry`, `ownership`, `patches`, `selectors`, `store`;
* its HTTP face: `api`, `streams`, `tables`, `discovery`, and `faults` on purpose.
"""

from __future__ import annotations

from sandbox.kube.controller import Timing
from sandbox.kube.server import Cluster, PortTaken, forget

__all__ = ["Cluster", "PortTaken", "Timing", "forget"]
