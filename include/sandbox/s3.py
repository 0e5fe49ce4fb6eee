"""The model store: SeaweedFS with an S3 door on loopback, and credentials made for this sandbox alone."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

from sandbox import programs
from sandbox.ports import LOOPBACK, Ports, replace
from sandbox.process import Child, short_folder
from sandbox.prometheus import until_ok

REGION = "us-east-1"


class ModelStore:
    """Runs SeaweedFS. Objects and credentials stay in the state folder and survive a restart.

    The credentials are random, made at the first start, and kept in files that only their owner may read.
    """

    def __init__(self, state_dir: Path, ports: Ports) -> None:
        self._folder = state_dir / "s3"
        self._port = ports.of("s3")
        self._master = f"http://{LOOPBACK}:{ports.of('s3-master')}"
        # SeaweedFS reads this file itself.
        self._identities = self._folder / "identities.json"
        self.access_key, self.secret_key = self._credentials()
        argv: list[str | Path] = [
            programs.weed(),
            "-logtostderr=true",
            "mini",
            f"-dir={self._folder.resolve()}/data",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-master.port={ports.of('s3-master')}",
            f"-volume.port={ports.of('s3-volume')}",
            f"-filer.port={ports.of('s3-filer')}",
            f"-s3.port={self._port}",
            f"-filer.localSocket={short_folder(state_dir)}/filer.sock",
            f"-s3.localSocket={short_folder(state_dir)}/s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            f"-admin.port={ports.of('s3-admin')}",
            # On by default, and would report to the vendor.
            "-master.telemetry=false",
            f"-s3.config={self._identities.resolve()}",
        ]
        log = state_dir / "logs/s3.log"
        self.child = Child("s3", argv, state_dir=state_dir, log=log, cwd=self._folder, grace=8.0)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    async def start(self) -> None:
        """Starts the store; returns when its S3 door answers, and what is behind it knows where objects are."""
        (self._folder / "data").mkdir(parents=True, exist_ok=True)
        await self.child.start()
        await until_ok(f"{self.url}/healthz", self.child)
        # The door is open before the volumes have told the master of themselves: an object is 500 until then.
        await until_ok(f"{self._master}/dir/status", self.child, lambda told: bool(told["Topology"]["DataCenters"]))

    async def stop(self) -> None:
        await self.child.stop()

    async def ensure_bucket(self, name: str) -> None:
        """Creates the bucket unless it is there."""
        await asyncio.to_thread(self._ensure_bucket, name)

    def client(self) -> Any:
        """A boto3 client for this store."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}, connect_timeout=5),
        )

    def _ensure_bucket(self, name: str) -> None:
        client = self.client()
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)

    def _credentials(self) -> tuple[str, str]:
        if not self._identities.exists():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            pair = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
            actions = ["Admin", "Read", "Write", "List", "Tagging"]
            identity = {"name": "sandbox", "credentials": [pair], "actions": actions}
            replace(self._identities, json.dumps({"identities": [identity]}, indent=1), mode=0o600)
        pair = json.loads(self._identities.read_text())["identities"][0]["credentials"][0]
        return pair["accessKey"], pair["secretKey"]
