from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.patience import come

from sandbox.envoy import BUCKETS_MS, Backend, Envoy
from sandbox.interfaces import RevisionKey, Route
from sandbox.ports import Ports, free_port
from sandbox.prometheus import Prometheus, Target

pytestmark = pytest.mark.stack

GOOD = RevisionKey("models", "digits-predictor-00001")
DOWN = RevisionKey("models", "digits-predictor-00002")


async def test_istios_names_hold_the_right_counts(envoy: Envoy, state: Path) -> None:
    prometheus = Prometheus(state, Ports(state / "ports.json"))
    requests = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal requests
        if request.path == "/metrics":
            return web.Response(text="own_requests_total 7\nCPUUtilization 50\n")
        requests += 1
        if requests > 20:
            await asyncio.sleep(0.12)
        return web.Response(status=200 if requests % 10 else 400)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    prometheus.scrape([Target(GOOD, "pod-a", port)])
    await prometheus.start()
    try:
        await envoy.place({GOOD: Backend([port])})
        hosts = [Route("good.localhost", {GOOD: 100}), Route("down.localhost", {DOWN: 100})]
        await envoy.program(hosts)
        async with aiohttp.ClientSession() as http:
            for host, times in (("good.localhost", 30), ("down.localhost", 7)):
                for _ in range(times):
                    async with http.get(envoy.url, headers={"Host": host}) as answer:
                        await answer.read()

            async def query(text: str) -> list[dict[str, Any]]:
                async with http.get(f"{prometheus.url}/api/v1/query", params={"query": text}) as answer:
                    found: list[dict[str, Any]] = (await answer.json())["data"]["result"]
                    return found

            count = f'istio_request_duration_milliseconds_count{{destination_workload="{GOOD.name}-deployment"}}'

            async def counted() -> bool:
                return [one["value"][1] for one in await query(count)] == ["30"]

            await come(counted, "Prometheus never had the counts")
            totals = await query("istio_requests_total")
            ours = ("reporter", "destination_workload", "destination_workload_namespace", "response_code")
            assert {(*(one["metric"][label] for label in ours), int(one["value"][1])) for one in totals} == {
                ("source", f"{GOOD.name}-deployment", "models", "200", 27),
                ("source", f"{GOOD.name}-deployment", "models", "400", 3),
                ("source", f"{DOWN.name}-deployment", "models", "503", 7),
            }
            assert not any(label.startswith("envoy") for one in totals for label in one["metric"])

            buckets = await query(count.replace("_count", "_bucket"))
            by_edge = {one["metric"]["le"]: int(one["value"][1]) for one in buckets}
            assert set(by_edge) == {*map(str, BUCKETS_MS), "+Inf"}
            assert by_edge["100"] == 20
            assert by_edge["500"] == by_edge["+Inf"] == 30
            total_ms = float((await query(count.replace("_count", "_sum")))[0]["value"][1])
            assert 10 * 115 < total_ms < 10 * 400

            own = await come(lambda: query("own_requests_total"), "Prometheus never had the replica's own metrics")
            labels = ("kn_revision_name", "k8s_namespace_name", "pod")
            assert [tuple(one["metric"][label] for label in labels) for one in own] == [(GOOD.name, "models", "pod-a")]
            assert await query("CPUUtilization") == []
            assert await query('{__name__=~"envoy_.*"}') == []

            # What was recorded survives a restart.
            recorded = await query(f"count_over_time({count}[1h])")
            await prometheus.stop()
            await prometheus.start()
            after = await query(f"count_over_time({count}[1h])")
            assert int(after[0]["value"][1]) >= int(recorded[0]["value"][1]) > 0
    finally:
        await prometheus.stop()
        await runner.cleanup()
