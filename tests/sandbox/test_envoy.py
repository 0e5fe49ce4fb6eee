from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import sqrt

import aiohttp
import pytest
from aiohttp import web

from sandbox.envoy import Backend, Envoy
from sandbox.errors import SandboxError
from sandbox.interfaces import RevisionKey, Route
from sandbox.ports import free_port

pytestmark = pytest.mark.stack

STABLE = RevisionKey("models", "digits-predictor-00001")
CANARY = RevisionKey("models", "digits-predictor-00002")
HOST = "digits.models.localhost"
LATEST = "latest-digits-predictor.models.localhost"

Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def replica(handler: Handler | None = None) -> AsyncIterator[int]:
    async def fine(_: web.Request) -> web.Response:
        return web.Response(text="fine", headers={"x-revision": "a lie"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler or fine)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield port
    await runner.cleanup()


async def ask(envoy: Envoy, host: str, times: int) -> Counter[tuple[int, str | None]]:
    seen: Counter[tuple[int, str | None]] = Counter()
    async with aiohttp.ClientSession() as http:
        for _ in range(times):
            async with http.get(envoy.url, headers={"Host": host}) as answer:
                await answer.read()
                seen[answer.status, answer.headers.get("x-revision")] += 1
    return seen


def routes(percent: int) -> list[Route]:
    shares = {STABLE: 100 - percent, CANARY: percent}
    return [Route(HOST, shares), Route(LATEST, {CANARY: 100})]


async def test_the_split_is_as_programmed_and_acts_at_once(envoy: Envoy) -> None:
    async with replica() as one, replica() as other:
        await envoy.place({STABLE: Backend([one]), CANARY: Backend([other])})
        await envoy.program(routes(0))
        assert await ask(envoy, HOST, 50) == {(200, STABLE.name): 50}
        # A tag's host reaches a revision that has no share of the service's host.
        assert await ask(envoy, LATEST, 5) == {(200, CANARY.name): 5}
        for percent in (30, 5):
            await envoy.program(routes(percent))
            seen = await ask(envoy, HOST, 1000)
            share = percent / 100
            # 4.5 standard deviations: a false alarm in about 150 000 runs.
            assert abs(seen[200, CANARY.name] - 1000 * share) < 4.5 * sqrt(1000 * share * (1 - share))
            assert seen[200, CANARY.name] + seen[200, STABLE.name] == 1000
        await envoy.program(routes(100))
        assert await ask(envoy, HOST, 50) == {(200, CANARY.name): 50}


async def test_no_request_fails_while_weights_and_replicas_change(envoy: Envoy) -> None:
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(0.02)
        return web.Response(text="fine")

    async with replica(slow) as one, replica(slow) as two, replica(slow) as three:
        await envoy.place({STABLE: Backend([one]), CANARY: Backend([two])})
        await envoy.program(routes(0))
        users = [asyncio.create_task(ask(envoy, HOST, 60)) for _ in range(8)]
        for turn in range(20):
            await envoy.program(routes(turn * 5))
            await envoy.place({STABLE: Backend([one, three] if turn % 2 else [one]), CANARY: Backend([two])})
            await asyncio.sleep(0.03)
        seen = sum(await asyncio.gather(*users), Counter())
    assert {status for status, _ in seen} == {200}
    assert seen.total() == 480
    assert len(seen) == 2, "both revisions had a share meanwhile"


async def test_hosts(envoy: Envoy) -> None:
    async with replica() as port:
        await envoy.place({STABLE: Backend([port])})
        await envoy.program([Route(f"{HOST}:8080", {STABLE: 100}), Route("empty.models.localhost", {})])
        assert await ask(envoy, HOST, 1) == {(200, STABLE.name): 1}
        assert await ask(envoy, f"{HOST}:12345", 1) == {(200, STABLE.name): 1}
        assert await ask(envoy, "unknown.models.localhost", 1) == {(404, None): 1}
        assert await ask(envoy, "empty.models.localhost", 1) == {(404, None): 1}
        await envoy.program([])
        assert await ask(envoy, HOST, 1) == {(404, None): 1}


async def test_a_revision_without_ready_replicas_is_503_and_says_which(envoy: Envoy) -> None:
    await envoy.program([Route(HOST, {CANARY: 100})])
    assert await ask(envoy, HOST, 3) == {(503, CANARY.name): 3}


async def test_concurrency_queues_and_then_refuses(envoy: Envoy) -> None:
    at_work = most = 0

    async def slow(_: web.Request) -> web.Response:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.05)
        at_work -= 1
        return web.Response(text="fine")

    async with replica(slow) as port:
        await envoy.place({STABLE: Backend([port], concurrency=2)})
        await envoy.program([Route(HOST, {STABLE: 100})])
        users = await asyncio.gather(*(ask(envoy, HOST, 1) for _ in range(12)))
        assert sum(users, Counter()) == {(200, STABLE.name): 12}
        assert most == 2
        crowd = sum(await asyncio.gather(*(ask(envoy, HOST, 1) for _ in range(60))), Counter())
    assert most == 2
    assert crowd[503, STABLE.name] > 20, "two at work and twenty waiting, the rest is refused"


async def test_what_envoy_refuses_is_one_line_and_changes_nothing(envoy: Envoy) -> None:
    async with replica() as port:
        await envoy.place({STABLE: Backend([port])})
        await envoy.program([Route(HOST, {STABLE: 100})])
        with pytest.raises(SandboxError, match=r"envoy refuses rds.json: .*domain"):
            await envoy.program([Route(HOST, {STABLE: 100}), Route(HOST, {CANARY: 100})])
        assert await ask(envoy, HOST, 1) == {(200, STABLE.name): 1}


async def test_a_restart_brings_the_last_state_back(envoy: Envoy) -> None:
    async with replica() as port:
        await envoy.place({STABLE: Backend([port])})
        await envoy.stop()
        await envoy.program([Route(HOST, {STABLE: 100})])  # while it is down
        await envoy.start()
        assert await ask(envoy, HOST, 2) == {(200, STABLE.name): 2}
