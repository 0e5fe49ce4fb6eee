from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from aiohttp import web
from tests.patience import come

from sandbox import load
from sandbox.errors import SandboxError
from sandbox.load import LoadGenerator
from sandbox.ports import free_port
from sandbox.wishes import Load, Wishes


@asynccontextmanager
async def service(handler: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def run(generator: LoadGenerator, until: Callable[[], object]) -> None:
    running = asyncio.create_task(generator.run())
    try:
        await come(until, generator.summary)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_requests_come_at_the_set_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes on only while the generator waits: that of a busy machine would say nothing of the rate."""
    sleep, now, sent = asyncio.sleep, 0.0, 0

    class Counting(LoadGenerator):
        async def _send(self, *_: object) -> None:
            nonlocal sent
            sent += 1

    async def later(seconds: float) -> None:
        nonlocal now
        now += seconds
        await sleep(0)

    monkeypatch.setattr(load, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(load, "asyncio", SimpleNamespace(sleep=later, create_task=asyncio.create_task))
    generator = Counting("http://127.0.0.1:1", [b"image"], seed=1)
    generator.load = Load("models/digits", 200)
    sending = asyncio.create_task(generator._send_on_time(None))
    while now < 20:
        await sleep(0)
    sending.cancel()
    # A Poisson process: 4 000 expected, standard deviation 63.
    assert abs(sent - 4000) < 4.5 * 63


async def test_requests_are_v1_predictions() -> None:
    requests = []

    async def handler(request: web.Request) -> web.Response:
        requests.append((request.path, request.headers["Host"], await request.json()))
        odd = len(requests) % 2
        return web.json_response({}, status=200 if odd else 503, headers={"x-revision": f"r{odd}"})

    async with service(handler) as url:
        generator = LoadGenerator(url, [b"image"], seed=1)
        generator.load = Load("models/digits", 200)
        await run(generator, lambda: generator.summary()["sent"] >= 100)
    body = {"instances": [{"data": "aW1hZ2U="}]}
    assert set(map(str, requests)) == {str(("/v1/models/digits:predict", "digits.models.localhost", body))}
    summary = generator.summary()
    assert 100 <= summary["sent"] <= len(requests)
    assert set(summary["answers"]) == {"r0", "r1"}
    assert set(summary["answers"]["r0"]) == {"503"}
    assert set(summary["answers"]["r1"]) == {"200"}
    assert 0 < summary["p50_ms"]["r1"] <= summary["p95_ms"]["r1"]


async def test_a_service_that_is_not_there_is_counted_and_no_trouble() -> None:
    generator = LoadGenerator(f"http://127.0.0.1:{free_port()}", [b"image"])
    generator.load = Load("models/digits", 100)
    await run(generator, lambda: generator.summary()["sent"] > 10)
    assert set(generator.summary()["answers"]) == {"-"}


async def test_a_service_that_hangs_does_not_fill_the_memory() -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async with service(hang) as url:
        generator = LoadGenerator(url, [b"image"])
        generator.load = Load("models/digits", 1000)
        await run(generator, lambda: generator.summary()["left_out"] > 100)
        assert len(generator._under_way) <= load._MOST_UNDER_WAY


async def test_without_a_wish_nothing_is_sent() -> None:
    generator = LoadGenerator("http://127.0.0.1:1", [b"image"])
    looks: list[int] = []
    await run(generator, lambda: looks.append(1) or len(looks) > 5)
    assert generator.summary()["sent"] == 0


@pytest.mark.parametrize("service", ["digits", "/digits", "models/", "a/b/c"])
def test_a_service_without_namespace_is_one_line(service: str) -> None:
    with pytest.raises(SandboxError, match="write namespace/name, for example models/digits"):
        Load(service, 1)


@pytest.mark.parametrize("rate", [0, -1, 1001, float("nan")])
def test_a_rate_out_of_range_is_one_line(rate: float) -> None:
    with pytest.raises(SandboxError, match="between 0 and 1000 requests a second"):
        Load("models/digits", rate)


def test_wishes_are_what_was_written(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    assert Wishes.read(folder) == Wishes()
    wishes = Wishes().without("s3").without("envoy").including("envoy").with_load(Load("models/digits", 40))
    wishes.write(folder)
    assert Wishes.read(folder) == Wishes(frozenset({"s3"}), Load("models/digits", 40))
