"""One real prediction on a revision that gets no traffic yet, through its tag address.

Ready does not mean that the model answers (docs/facts.md#ready-does-not-mean-loaded). No user's request reaches a
revision that did not answer here as its archive answered when it was built.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from model_release.cluster.inference_service import InferenceService
from model_release.errors import SmokeFailed

TOLERANCE = 0.02  # of a probability; another CPU's kernels differ in the last digits, another model by far more
TIMEOUT = 30.0  # seconds for one request

_SIGN_IN = "connection ingress takes a token (extra token) or login and password, or names the cluster-local gateway"

# Answers of a gateway whose routes are not all in place yet. KServe's wrapper also says 503 for a model that failed,
# so these are asked again for some seconds and then believed.
NOT_YET = (404, 502, 503, 504)

# What reading a model's answer may raise: one nested without end, or a number beyond all measure, is none either.
NO_ANSWER = (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Gateway:
    """How the gateway is reached: its base URL, or None where the services' host names resolve.

    `authorization` is sent as that header and shown nowhere. `verify` is True, False, or the file of the authorities to
    trust. With https the tag's host is also what the certificate must be for (SNI), whatever the address is.
    """

    address: str | None = None
    authorization: str | None = field(default=None, repr=False)
    verify: bool | str = True


class _Named(HTTPAdapter):
    """TLS for another name than the address's."""

    def __init__(self, host: str) -> None:
        self._host = host
        super().__init__()

    def init_poolmanager(self, *given: Any, **named: Any) -> None:
        super().init_poolmanager(*given, **named, server_hostname=self._host, assert_hostname=self._host)


@dataclass(frozen=True)
class Smoke:
    """What was answered: one {label, score} for each instance, and the seconds of the request that answered."""

    url: str
    answers: tuple[dict[str, Any], ...]
    seconds: float
    attempts: int


class Line:
    """The way to one revision behind a tag address, through the gateway. One request at a time; closed as a context."""

    def __init__(self, url: str, model: str, ingress: Gateway | str | None = None) -> None:
        gateway = ingress if isinstance(ingress, Gateway) else Gateway(ingress)
        self.host = urlsplit(url).netloc
        self.authorization = gateway.authorization
        base = (gateway.address or url).rstrip("/")
        self.address = f"{base}/v1/models/{model}:predict"
        self._headers = {"Host": self.host} if gateway.address else {}
        if gateway.authorization:
            self._headers["Authorization"] = gateway.authorization
        self._verify = gateway.verify
        self._session = requests.Session()
        # A proxy or a .netrc of the worker has no business between it and the cluster's gateway.
        self._session.trust_env = False
        if gateway.address and base.startswith("https:"):
            self._session.mount("https://", _Named(urlsplit(url).hostname or ""))

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def post(self, instances: Any, *, stream: bool = False) -> requests.Response:
        """The answer, whatever it is; with `stream` its body is still to be read. Raises what `requests` raises."""
        return self._session.post(
            self.address,
            json={"instances": instances},
            headers=self._headers,
            timeout=TIMEOUT,
            allow_redirects=False,  # an answer from elsewhere is not this revision's
            verify=self._verify,
            stream=stream,
        )


def stable_url(live: InferenceService) -> str:
    """The address that reaches the stable revision while the canary is at 0 %.

    Raises:
        SmokeFailed: it has none.
    """
    url = live.tag_url("prev") or live.url
    if url is None:
        raise SmokeFailed(f"InferenceService {live.key} has no address yet")
    return url


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
    ingress: Gateway | str | None = None,
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
        ingress: the gateway, or its base URL, for places where the tag's host name does not resolve; the host then
            travels in the Host header.
        deadline: seconds for a route that is not in place yet.
        tolerance: largest difference of a score.

    Raises:
        SmokeFailed: with what was answered.
    """
    end, attempts = clock() + deadline, 0
    with Line(url, model, ingress) as line:
        host = line.host
        while True:
            attempts += 1
            began = clock()
            try:
                response = line.post(sample["instances"])
            except requests.exceptions.SSLError as error:
                raise SmokeFailed(
                    f"the smoke prediction on {host}: TLS: {error}; connection ingress, extra verify, is the file of "
                    "the authorities to trust"
                ) from error
            except requests.RequestException as error:
                said = f"no answer: {error}"
            else:
                if response.status_code == 200:
                    answers = _answers(response, sample["expected"], tolerance, host)
                    _compare(answers, sample["expected"], tolerance, host)
                    return Smoke(line.address, answers, clock() - began, attempts)
                said = _told(response, line)
                if response.status_code not in NOT_YET:
                    raise SmokeFailed(f"the smoke prediction on {host} {said}")
            if clock() >= end:
                raise SmokeFailed(f"the smoke prediction on {host} {said} (tried {attempts} times in {deadline:g} s)")
            sleep(min(1.0, max(0.0, end - clock())))


def _told(response: requests.Response, line: Line) -> str:
    """What was answered in place of a prediction, and what it means where that is known. Holds no secret."""
    code, where = response.status_code, response.headers.get("Location", "")
    text = response.text[:300]
    if line.authorization:
        secret = line.authorization.rpartition(" ")[2]
        text, where = text.replace(secret, "***"), where.replace(secret, "***")
    if code in (301, 302, 303, 307, 308) and where:
        said = f"answered {code}, to {where}"
        if (
            where.startswith("https://")
            and line.address.startswith("http://")
            and urlsplit(where).path.endswith(":predict")
        ):
            return f"{said}: the gateway wants https; say so in the connection ingress (host https://…)"
        if code in (302, 303):
            return f"{said}: a sign-in page answered; {_SIGN_IN}"
        return said
    if code in (401, 403):
        return f"answered {code}: {text} ({_SIGN_IN})"
    return f"answered {code}: {text}"


def _answers(
    response: requests.Response, expected: list[Mapping[str, Any]], tolerance: float, host: str
) -> tuple[dict[str, Any], ...]:
    """The best label of each instance. The handler gives the likeliest labels of each, best first; of those that are
    equally likely within the tolerance, as another CPU may tell them, the expected one."""
    try:
        predictions = response.json()["predictions"]
        tops = [given[0] if isinstance(given, list) else given for given in predictions]
        for row, (given, wanted) in enumerate(zip(predictions, expected, strict=False)):
            named = [one for one in given if one["label"] == wanted["label"]] if isinstance(given, list) else []
            if named and float(tops[row]["score"]) - float(named[0]["score"]) <= tolerance:
                tops[row] = named[0]
        return tuple({"label": str(top["label"]), "score": float(top["score"])} for top in tops)
    except NO_ANSWER as error:
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
