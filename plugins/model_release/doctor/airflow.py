"""Whether leases and links tell this Airflow from another: they name it by its address."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from .finding import Finding, ok, warning


def check(address: str, cluster: Any) -> Iterator[Finding]:
    """A warning where a cluster that others can reach gets releases of an Airflow whose address is anybody's: each of
    two such would take the other's runs, which it does not know, for deleted, and settle what they began."""
    if _is_loopback(address) and not _is_loopback(cluster.configuration.host):
        yield warning(
            "airflow",
            f"leases name this Airflow {address}, which every machine's may be called",
            "set [api] base_url to an address of its own before another Airflow releases into this cluster",
        )
    else:
        yield ok("airflow", f"links and leases name it {address}")


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
