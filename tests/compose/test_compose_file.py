"""docker-compose.yaml, read by Docker Compose itself: what it demands, what it opens, what it may do."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_release.metrics import PROFILES

from .containers import COMPOSE, PROJECT, compose

AIRFLOW = {"init", "api-server", "scheduler", "dag-processor", "triggerer", "worker"}
SECRETS = (
    "AIRFLOW_ADMIN_PASSWORD", "AIRFLOW_FERNET_KEY", "AIRFLOW_JWT_SECRET", "AIRFLOW_API_SECRET_KEY",
    "POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_ADMIN_PASSWORD",
)  # fmt: skip


def test_it_holds_to_the_specification_and_has_every_part(resolved: dict[str, Any]) -> None:
    parts = {"postgres", "redis", "s3", "sandbox", "prometheus", "grafana", "guard"}
    assert set(resolved["services"]) == AIRFLOW | parts
    celery = {name for name, service in resolved["services"].items() if "celery" in service.get("profiles", ())}
    assert celery == {"redis", "worker"}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("restart: unless-stopped", "restarts: always", "restarts"),
        ("condition: service_completed_successfully", "condition: done", "condition"),
        ("condition: service_healthy", "condition: service_healty", "condition"),
    ],
)
def test_the_specification_is_really_asked(env_file: Path, tmp_path: Path, old: str, new: str, complaint: str) -> None:
    broken = tmp_path / "docker-compose.yaml"
    broken.write_text(COMPOSE.read_text().replace(old, new))
    done = compose(env_file, "config", "--quiet", file=broken)
    assert done.returncode != 0
    assert complaint in done.stderr


@pytest.mark.parametrize("secret", SECRETS)
def test_each_secret_is_required_and_has_no_default(env_file: Path, tmp_path: Path, secret: str) -> None:
    poorer = tmp_path / ".env"
    kept = [line for line in env_file.read_text().splitlines() if not line.startswith(f"{secret}=")]
    assert len(kept) == len(env_file.read_text().splitlines()) - 1
    poorer.write_text("\n".join(kept))
    done = compose(poorer, "config", "--quiet")
    assert done.returncode != 0
    assert f"required variable {secret} is missing a value: run `make env`" in done.stderr


def test_no_secret_has_a_value_in_the_file(secrets: dict[str, str]) -> None:
    assert set(secrets) == set(SECRETS)
    text = COMPOSE.read_text()
    for secret in SECRETS:
        used = re.findall(rf"\$\{{{secret}(:?[-?+])", text)
        assert used, f"{secret} is not used"
        assert set(used) == {":?"}


def test_make_env_makes_other_secrets_each_time_for_the_owner_alone_and_keeps_what_is_there(tmp_path: Path) -> None:
    script, texts = PROJECT / "include/images/make_env.py", []
    for name in ("one", "two"):
        target = tmp_path / name
        for expected in ("is made", "stays as it is"):
            done = subprocess.run([sys.executable, script, target], capture_output=True, text=True, check=True)
            assert expected in done.stdout
            texts.append(target.read_text())
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    values = [line.split("=", 1)[1] for text in texts[::2] for line in text.splitlines()[1:]]
    assert len(set(values)) == len(values) == 2 * len(SECRETS)
    assert min(map(len, values)) >= 20
    ignored = subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=PROJECT, check=False)
    assert ignored.returncode == 0, ".env could be committed"


def test_every_door_is_on_loopback(resolved: dict[str, Any]) -> None:
    ports = [(name, port) for name, service in resolved["services"].items() for port in service.get("ports", ())]
    assert {name for name, _ in ports} == {"api-server", "sandbox", "grafana"}
    assert {port["host_ip"] for _, port in ports} == {"127.0.0.1"}


def test_no_service_may_more_than_it_needs(resolved: dict[str, Any]) -> None:
    for name, service in resolved["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert not service.get("cap_add"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert not {"pid", "ipc", "userns_mode", "devices", "cgroup_parent"} & set(service), name
        assert service.get("network_mode") in (None, "service:sandbox"), name
        for volume in service.get("volumes", ()):
            assert "docker.sock" not in volume.get("source", ""), name
            assert volume["type"] == "volume" or volume.get("read_only"), f"{name} may write {volume['source']}"


def test_every_service_says_whether_it_is_healthy_and_waits_for_what_it_needs(resolved: dict[str, Any]) -> None:
    for name, service in resolved["services"].items():
        assert name == "init" or service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other == "init" else "service_healthy"
            assert how["condition"] == expected, f"{name} → {other}"
    for name in AIRFLOW - {"init"}:
        assert {"init", "postgres"} <= set(resolved["services"][name]["depends_on"])


def test_images_are_pinned_or_built_here(resolved: dict[str, Any]) -> None:
    for name, service in resolved["services"].items():
        _, _, tag = service["image"].partition(":")
        if "build" in service:
            assert tag == "local", name
            assert Path(service["build"]["context"], service["build"]["dockerfile"]).is_file(), name
        else:
            pinned = r"v?\d+\.\d+(\.\d+)?(-[a-z]+)?@sha256:[0-9a-f]{64}"
            assert re.fullmatch(pinned, tag), f"{name}: {service['image']}"


def test_airflow_finds_the_four_connections_and_shares_one_secret(resolved: dict[str, Any]) -> None:
    from airflow.sdk import Connection

    environments = {name: resolved["services"][name]["environment"] for name in AIRFLOW}
    for shared in ("AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__CORE__EXECUTOR"):
        assert len({environment[shared] for environment in environments.values()}) == 1
    said = environments["worker"]
    names = {"KUBERNETES": "kubernetes", "MODEL_STORE": "aws", "PROMETHEUS": "http", "INGRESS": "http"}
    for name, kind in names.items():
        connection = Connection.from_json(said[f"AIRFLOW_CONN_{name}"], conn_id=name.lower())
        assert connection.conn_type == kind
        host = connection.extra_dejson.get("endpoint_url") or connection.host or "http://sandbox"
        assert re.sub(r"^http://|:\d+$", "", host) in resolved["services"], f"{name}: {host} is no service"


def test_what_is_mounted_from_the_project_is_there(resolved: dict[str, Any]) -> None:
    sources = [
        Path(volume["source"])
        for service in resolved["services"].values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert sources
    assert [str(source) for source in sources if not source.exists()] == []


def test_a_new_volume_belongs_to_who_writes_it(resolved: dict[str, Any]) -> None:
    """The engine gives an empty volume the owner of the image's folder in that place, and root where there is none; and
    so does each further image that mounts it while it is empty."""
    givers: dict[str, set[str]] = {}
    for name, service in resolved["services"].items():
        build = service.get("build")
        text = Path(build["context"], build["dockerfile"]).read_text() if build else ""
        made = {folder for line in re.findall(r"mkdir -p (.*?) \\", text) for folder in line.split()}
        for volume in service.get("volumes", ()):
            if volume["type"] == "volume" and not volume.get("volume", {}).get("nocopy"):
                givers.setdefault(volume.get("source", name), set()).add(service["image"])
                assert not build or volume["target"] in {*made, "/tmp"}, f"{name}: {volume['target']} would be root's"
    assert {volume: images for volume, images in givers.items() if len(images) > 1} == {}


def test_grafana_is_told_what_its_provisioning_asks_for(resolved: dict[str, Any]) -> None:
    said = resolved["services"]["grafana"]["environment"]
    folder = PROJECT / "include/dashboards"
    lines = [line for file in (folder / "provisioning").glob("*.yaml") for line in file.read_text().splitlines()]
    asked = {name for line in lines if not line.strip().startswith("#") for name in re.findall(r"\$([A-Z_]+)", line)}
    assert asked
    assert asked - set(said) == set()
    assert said["MODEL_RELEASE_PROFILE"] in PROFILES


def test_the_dashboards_are_made_where_grafana_reads_them(resolved: dict[str, Any]) -> None:
    def places(service: str) -> list[str]:
        volumes = resolved["services"][service]["volumes"]
        return [volume["target"] for volume in volumes if volume.get("source") == "dashboards"]

    (made,), (read,) = places("init"), places("grafana")
    (command,) = resolved["services"]["init"]["command"]
    assert f"python -m model_release.metrics.dashboards {made}\n" in command
    provider = yaml.safe_load((PROJECT / "include/dashboards/provisioning/dashboards.yaml").read_text())["providers"]
    assert [one["options"]["path"] for one in provider] == [f"{read}/$MODEL_RELEASE_PROFILE"]
    assert "init" in resolved["services"]["grafana"]["depends_on"]


def test_each_database_is_named_with_the_driver_that_the_image_has(resolved: dict[str, Any]) -> None:
    """SQLAlchemy's default for `postgresql://` is another one from release to release: psycopg from 2.1 on."""
    environments = [resolved["services"][name].get("environment", {}) for name in AIRFLOW]
    urls = [value for one in environments for value in one.values() if value and "postgresql" in value]
    assert len(urls) == 2 * len(AIRFLOW)
    assert [url for url in urls if "postgresql+psycopg2://" not in url] == []
    assert "\npsycopg2-binary==" in (PROJECT / "include/images/airflow/hashed.txt").read_text()
