"""Signing in: what a server that checks is shown, and what no message ever shows."""

from __future__ import annotations

import http.server
import json
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from botocore.auth import SIGV4_TIMESTAMP, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from model_release.errors import MetricsRefused, MetricsUnavailable, ReleaseError
from model_release.metrics import Prometheus
from model_release.tasks import connections

SECRET = "s3cr3t+/=zXQ"
KEYS = Credentials("AKIDEXAMPLE", SECRET, token="session/token==")
LONG = " or ".join(f'up{{job="a job {n}"}}' for n in range(200))
Check = Callable[["_Handler", bytes], str | None]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Asked

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        trouble = self.server.check(self, body)
        self.server.asked += 1
        answer: dict[str, Any] = {"status": "success", "data": {"resultType": "vector", "result": []}}
        if trouble:
            answer = {"status": "error", "error": trouble}
        content = json.dumps(answer).encode()
        self.send_response(403 if trouble else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


class Asked(http.server.ThreadingHTTPServer):
    """Answers whoever passes `check`, which returns what is wrong."""

    def __init__(self, check: Check) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.check, self.asked = check, 0

    def handle_error(self, *_: object) -> None:
        """A handshake that is refused is what some tests are about."""


@pytest.fixture
def serving() -> Iterator[Callable[..., Asked]]:
    started: list[Asked] = []

    def start(check: Check, context: ssl.SSLContext | None = None) -> Asked:
        server = Asked(check)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def given(monkeypatch: pytest.MonkeyPatch, name: str, **connection: Any) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))


def signature_is_right(region: str) -> Check:
    """The server's side of Signature Version 4: decodes what came, signs it by botocore, and compares.

    As Amazon does, it reads the query's parameters and writes them anew in the canonical form, so an encoding that is
    right in a form and wrong in a signature is found.
    """

    def check(request: _Handler, body: bytes) -> str | None:
        given = request.headers["Authorization"] or ""
        path, _, query = request.path.partition("?")
        pairs = [pair.partition("=")[::2] for pair in query.split("&") if pair]
        canonical = "&".join(f"{quote(unquote(k), safe='-_.~')}={quote(unquote(v), safe='-_.~')}" for k, v in pairs)
        headers = {"Content-Type": kind} if (kind := request.headers["Content-Type"]) else {}
        again = AWSRequest(
            method=request.command,
            url=f"http://{request.headers['Host']}{path}?{canonical}",
            data=body,
            headers=headers | {"X-Amz-Date": request.headers["X-Amz-Date"] or ""},
        )
        signer = SigV4Auth(KEYS, "aps", region)
        moment = datetime.strptime(again.headers["X-Amz-Date"], SIGV4_TIMESTAMP).replace(tzinfo=UTC)
        if abs(datetime.now(UTC) - moment) > timedelta(minutes=5):
            return "the signature is old"
        again.context["timestamp"] = again.headers["X-Amz-Date"]
        if KEYS.token != request.headers["X-Amz-Security-Token"]:
            return "another session"
        again.headers["X-Amz-Security-Token"] = KEYS.token
        text = signer.string_to_sign(again, signer.canonical_request(again))
        expected = signer.signature(text, again)
        return None if given.endswith(f"Signature={expected}") else f"the signature does not match; sent: {given}"

    return check


@pytest.mark.parametrize("promql", ['sum(rate(up{job=~"a|b+c"}[5m])) + 1', LONG], ids=["by-get", "by-post"])
def test_amazon_finds_the_signature_right(
    promql: str, monkeypatch: pytest.MonkeyPatch, serving: Callable[..., Asked]
) -> None:
    server = serving(signature_is_right("eu-west-1"))
    host = f"http://127.0.0.1:{server.server_port}/workspaces/ws-1"
    given(monkeypatch, "PROMETHEUS", conn_type="http", host=host, extra={"sigv4_region": "eu-west-1"})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS.secret_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", KEYS.token)
    with connections.prometheus() as prometheus:
        assert prometheus.query(promql, datetime(2026, 3, 1, tzinfo=UTC)).series == []
        if promql != LONG:
            prometheus.label_values("job", 'up{a="b c"}', after=0, until=1000)


def test_amazon_by_an_aws_connection(monkeypatch: pytest.MonkeyPatch, serving: Callable[..., Asked]) -> None:
    server = serving(signature_is_right("us-east-1"))
    extra = {"sigv4_region": "us-east-1", "aws_conn_id": "metrics_reader"}
    given(monkeypatch, "PROMETHEUS", conn_type="http", host="127.0.0.1", port=server.server_port, extra=extra)
    secrets = {"login": KEYS.access_key, "password": KEYS.secret_key, "extra": {"aws_session_token": KEYS.token}}
    given(monkeypatch, "METRICS_READER", conn_type="aws", **secrets)
    with connections.prometheus() as prometheus:
        assert prometheus.query("up").series == []
    given(monkeypatch, "METRICS_READER", conn_type="aws", **secrets | {"password": "another"})
    with connections.prometheus() as prometheus, pytest.raises(MetricsRefused, match="the signature does not match"):
        prometheus.query("up")


def test_amazon_without_credentials_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given(monkeypatch, "PROMETHEUS", conn_type="http", host="aps", extra={"sigv4_region": "eu-west-1"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(MetricsRefused, match="the machine's own chain has no AWS credentials"):
        connections.prometheus()


class Authority:
    """Makes certificates, on files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a company's own authority")])
        self.file = folder / "authority.pem"
        own = self._certificate(self._name, self._key.public_key(), authority=True)
        self.file.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, private = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        issued = self._certificate(subject, key.public_key(), authority=False)
        certificate.write_bytes(issued.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private

    def _names(self, subject: x509.Name, *, authority: bool) -> x509.SubjectAlternativeName:
        (name,) = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        host = [] if authority else [x509.DNSName(str(name.value))]
        return x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), *host])

    def _certificate(self, subject: x509.Name, key: Any, *, authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(self._names(subject, authority=authority), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def test_tls_with_an_own_authority_and_a_client_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, serving: Callable[..., Asked]
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("prometheus")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority.file)
    context.verify_mode = ssl.CERT_REQUIRED
    server = serving(lambda *_: None, context)
    client, private = (str(path) for path in authority.issue("airflow"))
    # The company's bundle for everything else, which must not win over what the connection says.
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Authority(other).file))

    def ask(**extra: Any) -> None:
        where = {"host": "127.0.0.1", "schema": "https", "port": server.server_port}
        given(monkeypatch, "PROMETHEUS", conn_type="http", **where, extra=extra)
        with connections.prometheus() as prometheus:
            prometheus.query("up")

    ask(verify=str(authority.file), cert=[client, private])
    both = tmp_path / "both.pem"
    both.write_bytes(Path(client).read_bytes() + Path(private).read_bytes())
    ask(verify=str(authority.file), cert=str(both))
    assert server.asked == 2
    with pytest.raises(MetricsRefused, match=r"TLS: .*CERTIFICATE_VERIFY_FAILED"):
        ask(cert=[client, private])
    with pytest.raises(ReleaseError, match=r"TLS: |cannot be reached"):
        ask(verify=str(authority.file))
    with pytest.raises(MetricsRefused, match=r"TLS: .*missing\.pem"):
        ask(verify=str(tmp_path / "missing.pem"))
    assert server.asked == 2


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"extra": {"token": SECRET}}, f"Bearer {SECRET}"),
        ({"login": "reader", "password": SECRET}, "Basic cmVhZGVyOnMzY3IzdCsvPXpYUQ=="),
    ],
    ids=["bearer", "basic"],
)
def test_a_secret_is_shown_to_prometheus_and_to_nobody_else(
    said: dict[str, Any],
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    serving: Callable[..., Asked],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in logs at their most talkative, not in an error, though the server repeats what it was sent."""
    caplog.set_level(logging.DEBUG)
    seen: list[str | None] = []

    def check(request: _Handler, _: bytes) -> str | None:
        seen.append(request.headers["Authorization"])
        return None if len(seen) == 1 else f"not you: {request.headers['Authorization']}, {SECRET}"

    server = serving(check)
    given(monkeypatch, "PROMETHEUS", conn_type="http", host="127.0.0.1", port=server.server_port, **said)
    with connections.prometheus() as prometheus:
        prometheus.query("up")
        with pytest.raises(
            MetricsRefused, match=r"refuses the credentials \(403\): not you: \w+ \*\*\*, \*\*\*"
        ) as told:
            prometheus.query("up")
        server.shutdown()
        server.server_close()
        with pytest.raises(MetricsUnavailable) as gone:
            prometheus.query("up")
    assert seen == [shown, shown]
    everything = f"{told.value}{gone.value}{prometheus!r}{caplog.text}"
    assert "up" in everything
    assert SECRET not in everything
    assert shown.split()[1] not in everything


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (
            {"tokn": SECRET},
            "extra 'tokn' is unknown; known are token, sigv4_region, aws_conn_id, verify, cert, timeout",
        ),
        ({"aws_conn_id": "aws_default"}, "aws_conn_id has no meaning without sigv4_region"),
    ],
)
def test_a_connection_that_says_what_nobody_reads(
    extra: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, "PROMETHEUS", conn_type="http", host="prometheus", extra=extra)
    with pytest.raises(MetricsRefused, match=why) as refused:
        connections.prometheus()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("address", [f"http://a:{SECRET}@prometheus:9090", f"ftp://a:{SECRET}@prometheus"])
def test_an_address_with_credentials_is_refused_without_them(address: str) -> None:
    with pytest.raises(MetricsRefused, match="the address holds credentials") as refused:
        Prometheus(address)
    assert SECRET not in str(refused.value)


def test_two_ways_to_sign_in_are_one_too_many() -> None:
    with pytest.raises(MetricsRefused, match="give one"):
        Prometheus("http://prometheus", token="t", basic=("a", "b"))
