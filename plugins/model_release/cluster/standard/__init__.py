"""Standard mode: KServe from 0.21 on splits a service by `spec.canary` and the weights of HTTPRoutes.

Deployments and Services stand where Knative has revisions, and their names are what the verbs go by
(docs/facts.md#standard-mode; docs/standard-mode.md).
"""
