"""Prometheus' HTTP API, as far as counts need it: an instant query, raw samples of a selector, label values.

Reads only, so everything may be repeated. Source: https://prometheus.io/docs/prometheus/latest/querying/api/
"""

from __future__ import annotations

import json
import re
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import DecodeError, ProtocolError, ReadTimeoutError

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.metrics.auth import Bearer, SigV4

Labels = dict[str, str]

# Prometheus' documentation recommends POST where a query might outgrow what servers and proxies accept in a URL.
_LONGEST_URL_QUERY = 2000
_LONGEST_SHOWN = 300
# Seconds for all queries that belong together, such as those of one look: a Prometheus that hangs keeps the look no
# longer, however many they are.
BUDGET = 20.0
# 429 and 5xx pass by themselves. 422 does not: the query could not be executed, and will not be next time.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Series:
    """One series. `samples` are (milliseconds since the epoch, value), oldest first; a value may be NaN or infinite."""

    labels: Labels
    samples: list[tuple[int, float]]


@dataclass(frozen=True)
class Result:
    """What a query gave, whole."""

    series: list[Series]


def quoted(value: str) -> str:
    """A PromQL string literal of any text: the one place where text enters a query."""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").replace("\r", r"\r")
    return f'"{escaped}"'


def selector(
    metric: str,
    equal: Mapping[str, str],
    one_of: Mapping[str, Iterable[str]] | None = None,
    beginning: Mapping[str, Iterable[str]] | None = None,
) -> str:
    """`metric{a="x",b=~"y|z",c=~"(v|w).*"}` with every text escaped and matched literally."""
    matchers = [f"{label}={quoted(value)}" for label, value in equal.items()]
    matchers += [f"{label}=~{quoted(_either(values))}" for label, values in (one_of or {}).items()]
    matchers += [f"{label}=~{quoted(f'({_either(values)}).*')}" for label, values in (beginning or {}).items()]
    return f"{metric}{{{','.join(matchers)}}}"


def _either(values: Iterable[str]) -> str:
    return "|".join(literal(value) for value in dict.fromkeys(values))


def literal(text: str) -> str:
    """`text` as a regular expression (RE2) that matches only itself."""
    return re.sub(r"[][\\.+*?()|{}^$]", lambda match: "\\" + match[0], text)


def milliseconds(moment: datetime) -> int:
    """Milliseconds since the epoch; a moment without a time zone is refused, for it could be any."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return round(moment.timestamp() * 1000)


class Prometheus:
    """A Prometheus, or what speaks its API (Thanos, Mimir, VictoriaMetrics).

    `base_url` is the address before `/api/v1`. One of three ways to sign in, or none: `token` is sent as bearer token,
    `basic` as user and password, `sigv4` signs for Amazon. `verify` is True, False, or the file of the authorities to
    trust; `cert` the file of a client certificate with its key, or the two files. `timeout` in seconds is for each
    request, to its last byte. Not for several threads at once.

    Every method raises MetricsUnavailable when Prometheus does not answer now (unreachable, too slow, 429, 5xx) or
    calls its own answer incomplete, for what is missing cannot be counted; and
    MetricsRefused, with Prometheus' own words and the query, when it says no (400, 401, 403, 404, 422) or when the
    certificates do. No message holds a secret.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        basic: tuple[str, str] | None = None,
        sigv4: SigV4 | None = None,
        timeout: float = 10.0,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
    ) -> None:
        address = urlsplit(base_url)
        if "@" in base_url:  # a password with a slash in it would escape urlsplit, and stand in the next message
            raise MetricsRefused("Prometheus: the address holds credentials; give them as login and password instead")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise MetricsRefused(f"Prometheus: {base_url!r} is no address; http://prometheus:9090 is")
        if sum(way is not None for way in (token, basic, sigv4)) > 1:
            raise MetricsRefused("Prometheus: token, basic and SigV4 are ways to sign in; give one")
        self.base_url = base_url.rstrip("/")
        self._timeout, self._verify, self._cert = timeout, verify, cert
        self._end: float | None = None
        self._session = requests.Session()
        self._auth: Any = sigv4
        self._secrets: tuple[str, ...] = ()
        if token is not None:
            self._auth, self._secrets = Bearer(token), (token,)
        if basic is not None:
            self._auth = requests.auth.HTTPBasicAuth(*(part.encode() for part in basic))
            self._secrets = (basic[1], b64encode(":".join(basic).encode()).decode())

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def begin(self, seconds: float = BUDGET) -> None:
        """What is asked from now on has so many seconds in all; after them it is MetricsUnavailable, until this is
        called again."""
        self._end = time.monotonic() + seconds

    def query(self, promql: str, at: datetime | None = None) -> Result:
        """An instant query; `at` is now unless said. Each series of a vector has one sample, a scalar has no labels."""
        return Result(self._query(promql, None if at is None else milliseconds(at)))

    def raw(self, series_selector: str, after: int, until: int) -> list[Series]:
        """Every sample that was scraped in (after, until], both in milliseconds since the epoch."""
        found = []
        for series in self._query(f"{series_selector}[{max(until - after, 1)}ms]", until):
            # Prometheus 2 counts it in, 3 does not (docs/facts.md#the-left-end-of-a-range).
            samples = [sample for sample in series.samples if sample[0] > after]
            if samples:
                found.append(Series(series.labels, samples))
        return found

    def label_values(self, label: str, match: str | None = None, *, after: int, until: int) -> list[str]:
        """The values of a label (`__name__`: of metrics) between the two, in order of the alphabet."""
        params = {"start": _seconds(after), "end": _seconds(until)}
        if match is not None:
            params["match[]"] = match
        values = self._get(f"label/{label}/values", params, match or label)
        return [str(value) for value in values]

    def kind(self, metric: str) -> str | None:
        """counter, gauge, histogram or summary, as the metric's targets say; None where that is not known."""
        for name in (metric, re.sub(r"_(total|bucket|count|sum)$", "", metric)):
            found = self._get("metadata", {"metric": name}, name).values()
            if kinds := {str(entry.get("type")) for entries in found for entry in entries} - {"unknown"}:
                return min(kinds)
        return None

    @property
    def _at(self) -> str:
        return f"Prometheus at {self.base_url}"

    def _query(self, promql: str, at: int | None) -> list[Series]:
        params = {"query": promql} | ({} if at is None else {"time": _seconds(at)})
        data = self._get("query", params, promql)
        try:
            return _series(data)
        except (KeyError, TypeError, ValueError) as error:
            raise MetricsRefused(f"{self._at} answers what is no result ({error!r}); query: {promql}") from error

    def _get(self, path: str, params: dict[str, str], query: str) -> Any:
        url = f"{self.base_url}/api/v1/{path}"
        shown = query if len(query) <= _LONGEST_SHOWN else f"{query[:_LONGEST_SHOWN]}…"
        long = path == "query" and len(query) > _LONGEST_URL_QUERY
        now = time.monotonic()
        if self._end is not None and self._end <= now:
            raise MetricsUnavailable(f"{self._at} is too slow: the time for a look is over; query: {shown}")
        end = now + self._timeout if self._end is None else min(now + self._timeout, self._end)
        try:
            answer = self._session.request(
                "POST" if long else "GET",
                url,
                params=None if long else params,
                data=params if long else None,
                auth=self._auth,
                timeout=end - now,
                stream=True,
                # Given with each request: what a session knows gives way to the environment's REQUESTS_CA_BUNDLE.
                verify=self._verify,
                cert=self._cert,
                # A signature is for one address, and a form would be sent again as a question without it.
                allow_redirects=not long and not isinstance(self._auth, SigV4),
            )
            body = self._body(answer, end)
        except requests.exceptions.SSLError as error:
            why = f"{self._at}: TLS: {_innermost(error)}; query: {shown}"
            raise (MetricsRefused if "certificate" in why.lower() else MetricsUnavailable)(why) from error
        except requests.Timeout as error:
            raise MetricsUnavailable(
                f"{self._at} does not answer within {self._timeout:g} s; query: {shown}"
            ) from error
        except requests.RequestException as error:
            raise MetricsUnavailable(f"{self._at} cannot be reached: {_innermost(error)}; query: {shown}") from error
        except OSError as error:  # a certificate's file is missing or is none
            raise MetricsRefused(f"{self._at}: TLS: {error}") from error
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            content = {}
        code = answer.status_code
        if code == 200 and content.get("status") == "success" and "data" in content:
            if partly := _partly(content):
                raise MetricsUnavailable(f"{self._at} answers only in part: {partly}; query: {shown}")
            return content["data"]
        said = content.get("error") or f"{code} {answer.reason}, {answer.headers.get('Content-Type', 'no content')}"
        said = self._without_secrets(str(said))
        if code in _PASSING:
            raise MetricsUnavailable(f"{self._at} cannot answer now ({code}): {said}; query: {shown}")
        if code in (401, 403):
            raise MetricsRefused(f"{self._at} refuses the credentials ({code}): {said}; query: {shown}")
        if not content:
            raise MetricsRefused(f"{url} is not Prometheus' API: it answers {said}; query: {shown}")
        raise MetricsRefused(f"{self._at} refuses the query ({code}): {said}; query: {shown}")

    def _body(self, answer: requests.Response, end: float) -> bytes:
        """All of it, read as it comes: a timeout of the socket's is for each part, and a drip would never end."""
        parts: list[bytes] = []
        try:
            while part := answer.raw.read1(1 << 20, decode_content=True):
                parts.append(part)
                if time.monotonic() >= end:
                    raise requests.Timeout
        except ReadTimeoutError as error:
            raise requests.Timeout from error
        except (ProtocolError, DecodeError) as error:
            raise requests.ConnectionError(error) from error
        finally:
            answer.close()  # read to its end, the connection is in the pool again already
        return b"".join(parts)

    def _without_secrets(self, said: str) -> str:
        """A proxy may repeat what it was sent."""
        for secret in filter(None, self._secrets):
            said = said.replace(secret, "***")
        return said


def _partly(content: dict[str, Any]) -> str:
    """Why the answer is not the whole one, by its own words; nothing when it is.

    Prometheus and Thanos say it in `warnings`, VictoriaMetrics' cluster in `isPartial`, when a storage node is away.
    """
    if warnings := content.get("warnings"):
        return str(warnings[0])
    return "isPartial is true, as when a storage node is away" if content.get("isPartial") else ""


def _seconds(moment: int) -> str:
    """Exact to the millisecond, where a float's text might not be."""
    return f"{moment // 1000}.{moment % 1000:03d}"


def _series(data: Any) -> list[Series]:
    kind, result = data["resultType"], data["result"]
    if kind == "scalar":
        return [Series({}, [_sample(result)])]
    if kind == "vector":
        return [Series(entry["metric"], [_sample(entry["value"])]) for entry in result if "value" in entry]
    if kind == "matrix":
        return [Series(e["metric"], [_sample(s) for s in e["values"]]) for e in result if "values" in e]
    raise ValueError(f"result of type {kind}")


def _sample(pair: list[Any]) -> tuple[int, float]:
    return round(pair[0] * 1000), float(pair[1])


def _innermost(error: BaseException) -> str:
    """urllib3 wraps the reason (`Connection refused`) in three sentences of its own."""
    reason: Any = error.args[0] if error.args else error
    reason = getattr(reason, "reason", reason)
    text = str(reason)
    return text.rsplit(": ", 1)[-1] if "Errno" in text else text
