from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

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


async def run(generator: LoadGenerator, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(generator.run(), seconds)


async def test_requests_are_v1_predictions_at_the_set_rate() -> None:
    requests = []

    async def handler(request: web.Request) -> web.Response:
        requests.append((request.path, request.headers["Host"], await request.json()))
        odd = len(requests) % 2
        return web.json_response({}, status=200 if odd else 503, headers={"x-revision": f"r{odd}"})

    async with service(handler) as url:
        generator = LoadGenerator(url, [b"image"], seed=1)
        generator.load = Load("models/digits", 200)
        await run(generator, 2)
    # A Poisson process: 400 expected, standard deviation 20.
    assert 300 < len(requests) < 500
    body = {"instances": [{"data": "aW1hZ2U="}]}
    assert set(map(str, requests)) == {str(("/v1/models/digits:predict", "digits.models.localhost", body))}
    summary = generator.summary()
    assert summary["sent"] == len(requests)
    assert set(summary["answers"]) == {"r0", "r1"}
    assert set(summary["answers"]["r0"]) == {"503"}
    assert set(summary["answers"]["r1"]) == {"200"}
    assert 0 < summary["p50_ms"]["r1"] <= summary["p95_ms"]["r1"] < 1000


async def test_a_service_that_is_not_there_is_counted_and_no_trouble() -> None:
    generator = LoadGenerator(f"http://127.0.0.1:{free_port()}", [b"image"])
    generator.load = Load("models/digits", 100)
    await run(generator, 0.5)
    assert set(generator.summary()["answers"]) == {"-"}
    assert generator.summary()["sent"] > 10


async def test_a_service_that_hangs_does_not_fill_the_memory() -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with service(hang) as url:
        generator = LoadGenerator(url, [b"image"])
        generator.load = Load("models/digits", 1000)
        await run(generator, 1.5)
    assert generator.summary()["left_out"] > 100


async def test_without_a_wish_nothing_is_sent() -> None:
    generator = LoadGenerator("http://127.0.0.1:1", [b"image"])
    await run(generator, 0.3)
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
