"""PostgreSQL, the database under the sandbox's Airflow: a plain process without root, for nobody but this sandbox.

It listens on a Unix socket in a private folder and on no port; one role may enter, with a random password. What it
holds is in the state folder and survives a restart and a kill.

PostgreSQL refuses to be root. Where the sandbox is root (in a container, in CI), `setpriv` makes the server `nobody`,
who keeps one of root's rights: to walk through the private folders that lie above the server's own.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from sandbox import programs
from sandbox.errors import SandboxError
from sandbox.ports import replace
from sandbox.process import PATIENCE, Child, short_folder

ROLE = "airflow"

_STOP = signal.SIGINT  # PostgreSQL's fast shutdown; at SIGTERM it waits for its clients
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "jit": "off",
    # A statement that failed holds what was to be written, and a connection may hold a password.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
_CAP_DAC_READ_SEARCH = 2  # capability.h


class Postgres:
    """Runs the server. Raises SandboxError, one line, when there is none to be had or its data is another's."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir.resolve() / "postgres"
        self._data = self._folder / "data"
        self._socket = short_folder(state_dir) / "postgres"
        self._bin, self._user = programs.postgres(), _user()
        self._password = self._kept_password()
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        argv: list[str | Path] = [*self._user, self._bin / "postgres", "-D", self._data, "-k", self._socket, *settings]
        log = state_dir / "logs/postgres.log"
        self.child = Child("postgres", argv, state_dir=state_dir, log=log, cwd=Path("/"), stop_sign=_STOP)

    @property
    def url(self) -> str:
        """Where it is, without the password."""
        return f"postgresql://{ROLE}@/{ROLE}?host={quote(str(self._socket))}"

    @property
    def sqlalchemy_url(self) -> str:
        """What Airflow is told. Of it Airflow makes the address for asyncpg by itself."""
        return f"postgresql+psycopg2://{ROLE}:{self._password}@/{ROLE}?host={quote(str(self._socket))}"

    async def start(self) -> None:
        """Makes the database at the first start; returns when it takes the role in. One that was killed recovers."""
        await asyncio.to_thread(self._prepare)
        await self.child.start()
        deadline = time.monotonic() + PATIENCE
        while not await self._answers():
            if not self.child.running:
                raise SandboxError(f"postgres ended with code {self.child.exit_code}: {self.child.tail(2)}")
            if time.monotonic() > deadline:
                raise SandboxError(f"postgres does not answer: {self.child.tail(2)}")
            await asyncio.sleep(0.03)

    async def stop(self) -> None:
        await self.child.stop()

    async def _answers(self) -> bool:
        import asyncpg  # not in the sandbox's image, where Airflow and its database are containers of their own

        try:
            connection = await asyncpg.connect(
                host=str(self._socket), user=ROLE, password=self._password, database=ROLE, timeout=5
            )
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError):
            return False
        except asyncpg.PostgresError as error:
            raise SandboxError(f"postgres: {error}") from error
        await connection.close()
        return True

    def _prepare(self) -> None:
        self._own(self._socket)
        if not self._data.exists():
            self._make()
        made_by, server = (self._data / "PG_VERSION").read_text().strip(), self._version()
        if made_by != server:
            raise SandboxError(
                f"{self._data} was made by PostgreSQL {made_by} and {self._bin / 'postgres'} is {server}: "
                f"`make clean` forgets it, with all that Airflow knows"
            )

    def _make(self) -> None:
        """Appears whole or not at all."""
        passing = self._folder / "passing"
        shutil.rmtree(passing, ignore_errors=True)
        self._own(passing)
        options = ["--username=postgres", "--no-locale", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        self._run([self._bin / "initdb", "-D", passing, *options])
        # One role, one database, one way in. The superuser has none but the single-user mode used here.
        (passing / "pg_hba.conf").write_text(f"local {ROLE} {ROLE} scram-sha-256\n")
        statements = f"CREATE ROLE {ROLE} LOGIN PASSWORD '{self._password}';\nCREATE DATABASE {ROLE} OWNER {ROLE};\n"
        single: list[str | Path] = [
            self._bin / "postgres",
            "--single",
            "-D",
            passing,
            "-c",
            "exit_on_error=on",
            "postgres",
        ]
        self._run(single, statements)
        passing.rename(self._data)

    def _own(self, folder: Path) -> None:
        """The folder is there, and the server's alone."""
        folder.mkdir(mode=0o700, exist_ok=True)
        if self._user:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)

    def _run(self, command: list[str | Path], said: str = "") -> str:
        argv = [str(part) for part in (*self._user, *command)]
        environment = {"PATH": os.defpath, "LC_ALL": "C"}
        done = subprocess.run(
            argv, input=said, env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise SandboxError(f"{Path(command[0]).name} failed with code {done.returncode}: {lines[-1]}")
        return done.stdout

    def _version(self) -> str:
        """`18`, of `postgres (PostgreSQL) 18.6`."""
        return self._run([self._bin / "postgres", "--version"]).split(")")[1].split()[0].split(".")[0]

    def _kept_password(self) -> str:
        file = self._folder / "password"
        if not file.exists():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace(file, secrets.token_urlsafe(32), mode=0o600)
        return file.read_text()


def _user() -> list[str]:
    """What goes before a command so that it is not root's; nothing where it would not be."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        raise SandboxError("PostgreSQL refuses to be root, and setpriv (util-linux) is missing: install it")
    rights = next(int(line.split()[1], 16) for line in _status() if line.startswith("CapEff:"))
    # To walk through folders is enough; a container's root often has only the right that includes more.
    right = "dac_read_search" if rights >> _CAP_DAC_READ_SEARCH & 1 else "dac_override"
    return [
        "setpriv",
        "--reuid=nobody",
        f"--regid={pwd.getpwnam('nobody').pw_gid}",
        "--clear-groups",
        *(
            f"--{name}-{'set' if name == 'bounding' else 'caps'}=-all,+{right}"
            for name in ("inh", "ambient", "bounding")
        ),
        # Else the right does not count when the server looks whether it may run its own programs (access(2)).
        "--securebits=+no_setuid_fixup",
        # The change of user has made the kernel forget it.
        f"--pdeathsig={_STOP.name.removeprefix('SIG')}",
        "--",
    ]


def _status() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()
