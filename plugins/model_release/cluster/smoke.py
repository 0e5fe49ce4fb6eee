"""One real prediction on a revision that gets no traffic yet, through its tag address.

Ready does not mean that the model answers (docs/facts.md#ready-does-not-mean-loaded). No user's request reaches a
revision that did not answer here as its archive answered when it was built.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests

from model_release.cluster.inference_service import InferenceService
from model_release.errors import SmokeFailed

TOLERANCE = 0.02  # of a probability; another CPU's kernels differ in the last digits, another model by far more
TIMEOUT = 30.0  # seconds for one request

# Answers of a gateway whose routes are not all in place yet. KServe's wrapper also says 503 for a model that failed,
# so these are asked again for some seconds and then believed.
NOT_YET = (404, 502, 503, 504)


@dataclass(frozen=True)
class Smoke:
    """What was answered: one {label, score} for each instance, and the seconds of the request that answered."""

    url: str
    answers: tuple[dict[str, Any], ...]
    seconds: float
    attempts: int


def smoke_url(live: InferenceService) -> str:
    """The address that reaches the latest revision whatever its share.

    Raises:
        SmokeFailed: it has none.
    """
    url = live.tag_url("latest") or (live.url if live.prev_revision is None else None)
    if url is None:
        raise SmokeFailed(
            f'{live.latest_created} has no tag address; annotation serving.kserve.io/enable-tag-routing: "true" on '
            f"InferenceService {live.key} makes KServe give it one"
        )
    return url


def smoke(
    url: str,
    model: str,
    sample: Mapping[str, Any],
    *,
    ingress: str | None = None,
    deadline: float = 60.0,
    tolerance: float = TOLERANCE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Smoke:
    """Ask the revision behind `url` for the version's sample, and compare with what the archive answered.

    Again: asks again; changes nothing.

    Args:
        url: a tag address, from `smoke_url`.
        sample: the version's smoke.json: {"instances": [{"data": "<base64>"}…], "expected": [{"label", "score"}…]}.
        ingress: base URL of the gateway, for places where the tag's host name does not resolve; the host then
            travels in the Host header.
        deadline: seconds for a route that is not in place yet.
        tolerance: largest difference of a score.

    Raises:
        SmokeFailed: with what was answered.
    """
    host = urlsplit(url).netloc
    base = (ingress or url).rstrip("/")
    address = f"{base}/v1/models/{model}:predict"
    headers = {"Host": host} if ingress else {}
    end, attempts = clock() + deadline, 0
    with requests.Session() as session:
        # A proxy or a .netrc of the worker has no business between it and the cluster's gateway.
        session.trust_env = False
        while True:
            attempts += 1
            began = clock()
            try:
                response = session.post(
                    address,
                    json={"instances": sample["instances"]},
                    headers=headers,
                    timeout=TIMEOUT,
                    allow_redirects=False,  # an answer from elsewhere is not this revision's
                )
            except requests.RequestException as error:
                said = f"no answer: {error}"
            else:
                if response.status_code == 200:
                    answers = _answers(response, host)
                    _compare(answers, sample["expected"], tolerance, host)
                    return Smoke(address, answers, clock() - began, attempts)
                said = f"answered {response.status_code}: {response.text[:300]}"
                if response.status_code not in NOT_YET:
                    raise SmokeFailed(f"the smoke prediction on {host} {said}")
            if clock() >= end:
                raise SmokeFailed(f"the smoke prediction on {host} {said} (tried {attempts} times in {deadline:g} s)")
            sleep(min(1.0, max(0.0, end - clock())))


def _answers(response: requests.Response, host: str) -> tuple[dict[str, Any], ...]:
    """The best label of each instance. The handler gives the likeliest labels of each, best first."""
    try:
        predictions = response.json()["predictions"]
        tops = [given[0] if isinstance(given, list) else given for given in predictions]
        return tuple({"label": str(top["label"]), "score": float(top["score"])} for top in tops)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SmokeFailed(
            f"the smoke prediction on {host} is not {{predictions: [{{label, score}} …]}}: {response.text[:300]}"
        ) from error


def _compare(
    answers: tuple[dict[str, Any], ...], expected: list[Mapping[str, Any]], tolerance: float, host: str
) -> None:
    if len(answers) != len(expected):
        raise SmokeFailed(f"the smoke prediction on {host} has {len(answers)} answers to {len(expected)} instances")
    for row, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        same = answer["label"] == wanted["label"] and abs(answer["score"] - float(wanted["score"])) <= tolerance
        if not same:
            raise SmokeFailed(
                f"the smoke prediction on {host}, image {row}: {answer['label']} {answer['score']:.4f}, where the "
                f"archive answered {wanted['label']} {float(wanted['score']):.4f} (tolerance {tolerance:g})"
            )
