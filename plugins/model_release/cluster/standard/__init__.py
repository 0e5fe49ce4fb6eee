"""Standard mode: KServe from 0.21 on splits a service by `spec.canary` and the weights of HTTPRoutes.

Deployments and Services stand where Knative has revisions, and their names are what the verbs go by
(facts/kserve.md 6.1; docs/standard-mode.md).
"""
