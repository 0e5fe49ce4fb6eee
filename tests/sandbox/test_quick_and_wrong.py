"""A canary that answers quickly, without errors, and wrongly for one kind of picture: real TorchServe with the real
handler, a real split, and a real Prometheus. A shadow tells it at 0 %, before any user; the counts of its labels tell
it at 50 %."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image
from tests.patience import LIMIT

from model_release.build.archive import archive
from model_release.build.samples import chosen
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.manifest import TAG_ROUTING
from model_release.cluster.pairs import compare
from model_release.cluster.smoke import Line, smoke_url, stable_url
from model_release.judging import Judge as Verdicts
from model_release.judging import Policy, Verdict
from model_release.judging.pairs import Pairs
from model_release.metrics import Prometheus as Client
from model_release.metrics import WindowReader, answers_presence, profile
from model_release.spec import JudgeSpec
from sandbox.envoy import Envoy
from sandbox.kube import Cluster, Timing
from sandbox.ports import Ports
from sandbox.prometheus import Prometheus
from sandbox.revision import Pace
from sandbox.s3 import ModelStore
from sandbox.workloads import ProcessWorkloads

pytestmark = pytest.mark.stack

R1, R2 = "colours-predictor-00001", "colours-predictor-00002"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
HANDLER = Path(__file__).resolve().parents[2] / "include" / "handlers" / "image_classifier.py"
SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/models/inferenceservices"
HOST = {"Host": "colours.models.localhost"}
WINDOW = timedelta(seconds=2)
JUDGE = JudgeSpec.model_validate(
    {
        "profile": "istio",
        "metrics": [
            {"name": "errors", "max_rate": 0.05},
            {"name": "predictions", "max_shift": 0.1},
            {"name": "unsure", "below": 0.5, "max_rate": 0.1, "slices": {"by": "size", "at_least": 5}, "observe": True},
        ],
    }
)
POLICY = {"indifference": 2, "deadline_windows": 150, "metrics": [metric.limits() for metric in JUDGE.metrics]}


def picture(colour: str, large: bool) -> bytes:
    """What a user sends."""
    return json.dumps({"instances": [{"data": base64.b64encode(png(colour, large)).decode()}]}).encode()


def png(colour: str, large: bool) -> bytes:
    """One colour; the large ones have something green in the middle."""
    image = Image.new("RGB", (96, 96) if large else (32, 32), COLOURS[colour])
    if large:
        image.paste(COLOURS["green"], (32, 32, 64, 64))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def publish(client: Any, folder: Path, version: str, *, crops: bool) -> str:
    """A version that says which colour a picture mostly has. One that crops sees only the middle of a large one: its
    processor was saved with `do_center_crop` where it should have had `do_resize`."""
    import torch

    class Mean(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return 10 * pixels.mean((2, 3))

    export = folder / version
    export.mkdir()
    torch.jit.freeze(torch.jit.trace(Mean().eval(), torch.rand(1, 3, 32, 32))).save(export / "model.pt")
    size = {"height": 32, "width": 32}
    preprocessing = {
        "do_convert_rgb": True,
        "do_resize": not crops,
        "size": size,
        "resample": 2,
        "crop_pct": None,
        "do_center_crop": crops,
        "crop_size": size if crops else None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "image_mean": None,
        "image_std": None,
    }
    described = {"labels": list(COLOURS), "input": size, "preprocessing": preprocessing}
    (export / "model.json").write_text(json.dumps({**described, "activation": "softmax", "top_k": 3}))
    packed = archive(export, "colours", HANDLER, folder / f"{version}-packed")
    for file in sorted(packed.directory.rglob("*")):
        if file.is_file():
            key = f"colours/{version}/{file.relative_to(packed.directory)}"
            client.put_object(Bucket="models", Key=key, Body=file.read_bytes())
    return f"s3://models/colours/{version}/"


@dataclass
class Live:
    cluster: Cluster
    envoy: Envoy
    prometheus: Client
    http: aiohttp.ClientSession
    seen: Counter[tuple[str, int]]

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        async with self.http.request(method, f"{self.cluster.url}{path}", **more) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def write(self, **predictor: Any) -> None:
        headers = {"Content-Type": "application/merge-patch+json"}
        await self.ask("PATCH", f"{SERVICES}/colours", json={"spec": {"predictor": predictor}}, headers=headers)

    async def users(self) -> None:
        """Thirty a second; two of three pictures are large. Never returns."""
        chance = random.Random(1)
        pictures = [(large, picture(colour, large)) for colour in COLOURS for large in (False, True, True)]
        url = f"{self.envoy.url}/v1/models/colours:predict"

        async def one() -> None:
            large, body = chance.choice(pictures)
            headers = {**HOST, "Content-Type": "application/json", "X-Slice-Size": "large" if large else "small"}
            async with self.http.post(url, data=body, headers=headers) as answer:
                await answer.read()
                self.seen[answer.headers.get("x-revision", "-"), answer.status] += 1

        async with asyncio.TaskGroup() as asked:
            while True:
                asked.create_task(one())
                await asyncio.sleep(1 / 30)

    async def until_users_are_on(self, *revisions: str) -> None:
        """Returns when the last thirty were, and nobody else was."""
        deadline = time.monotonic() + LIMIT
        while True:
            before = self.seen.copy()
            await asyncio.sleep(1)
            now = {revision for (revision, _), number in (self.seen - before).items() if number}
            if now == set(revisions):
                return
            assert time.monotonic() < deadline, f"users are on {now}"


@pytest.fixture
async def live(state: Path, envoy: Envoy, store: ModelStore) -> AsyncIterator[Live]:
    watching = Prometheus(state, Ports(state / "ports.json"))

    async def changed() -> None:
        watching.scrape(workloads.targets())
        await envoy.place(workloads.backends())

    workloads = ProcessWorkloads(
        state_dir=state, store=store.client, changed=changed, pace=Pace(first_backoff=0.2, drain=0.1)
    )
    await watching.start()
    await workloads.start()
    cluster = Cluster(workloads, envoy, state, timing=Timing(lag=0.02, poll=0.05))
    await cluster.start()
    with Client(watching.url) as client:
        async with aiohttp.ClientSession() as http:
            yield Live(cluster, envoy, client, http, Counter())
    await cluster.stop()
    await workloads.stop()
    await watching.stop()


async def compared(live: Live, s3: Any) -> Pairs:
    """What both sides answer to 20 small and 40 large samples, while the canary has no traffic."""
    for number in range(60):
        colour, large = list(COLOURS)[number % 3], number >= 20
        key = f"samples/{'large' if large else 'small'}/{number}.png"
        s3.put_object(Bucket="models", Key=key, Body=png(colour, large))
    pairs = Pairs(60, 0.1)
    deadline = time.monotonic() + LIMIT
    while (isvc := InferenceService(await live.ask("GET", f"{SERVICES}/colours"))).traffic != {R1: 100, R2: 0}:
        assert time.monotonic() < deadline, f"the canary is not ready at 0 %: {isvc.traffic}"
        await asyncio.sleep(0.2)
    stable, canary = (partial(Line, url, "colours", live.envoy.url) for url in (stable_url(isvc), smoke_url(isvc)))
    pictures = chosen("s3://models/samples/", Path(), lambda _: s3, 60, "colours")
    await asyncio.to_thread(compare, pictures, stable, canary, pairs, lambda: None)
    # A release waits for half a window: then these requests are in none of the canary's.
    ended, counts = datetime.now(UTC).timestamp(), 'image_classifier_slices_total{value="none"}'
    scraped = f"min(timestamp({counts})) unless count(count by (pod) ({counts})) < 2"
    while not any(one.samples[-1][1] > ended for one in live.prometheus.query(scraped).series):
        assert time.monotonic() < deadline, "Prometheus does not scrape what the servers count"
        await asyncio.sleep(0.2)
    return pairs


async def judged(live: Live, opened: datetime) -> Verdict:
    """The judge's answer, as a release asks for it: look after look."""
    reader = WindowReader(live.prometheus, JUDGE, namespace="models", canary=R2, stable=R1, start=opened, window=WINDOW)
    verdicts = Verdicts(Policy.from_dict(POLICY))
    while not verdicts.decided:
        verdicts.extend(await asyncio.to_thread(reader.read))
        assert datetime.now(UTC) < opened + timedelta(seconds=LIMIT), verdicts.verdict(final=True).reason
        await asyncio.sleep(0.5)
    return verdicts.verdict()


@pytest.mark.parametrize("crops", [True, False], ids=["wrong for large pictures", "as stable"])
async def test_a_canary_that_answers_otherwise_is_told_by_its_labels(
    live: Live, store: ModelStore, tmp_path: Path, crops: bool
) -> None:
    v1 = publish(store.client(), tmp_path, "v1", crops=False)
    v2 = publish(store.client(), tmp_path, "v2", crops=crops)
    told = [{"name": "MODEL_SLICES", "value": "size"}]
    model = {"modelFormat": {"name": "pytorch"}, "storageUri": v1, "env": told}
    metadata = {"name": "colours", "annotations": {TAG_ROUTING: "true"}}
    await live.ask("POST", SERVICES, json={"metadata": metadata, "spec": {"predictor": {"model": model}}})
    asking = asyncio.create_task(live.users())
    await live.until_users_are_on(R1)
    await live.write(model={"storageUri": v2}, canaryTrafficPercent=0)
    pairs = await compared(live, store.client())
    print(pairs.sentence)
    assert {revision for revision, _ in live.seen} <= {R1, "-"}, "no user has met it"
    assert (pairs.canary.failed, pairs.canary.refused, pairs.decision) == (0, 0, "beyond" if crops else "within")
    assert pairs.became.keys() <= ({("red", "green"), ("blue", "green")} if crops else set())

    await live.write(canaryTrafficPercent=50)
    await live.until_users_are_on(R1, R2)
    opened = datetime.now(UTC)
    for found in answers_presence(live.prometheus, profile("istio"), JUDGE, "models", R1, window=WINDOW):
        assert found.ok, found.sentence

    verdict = await judged(live, opened)

    print(f"after {verdict.windows_used} windows of {WINDOW.total_seconds():g} s: {verdict.reason}")
    assert verdict.metrics[0].canary["bad"] == 0, "it answers without errors"
    unsure = next(metric for metric in verdict.metrics if metric.name == "unsure")
    sizes = {one.slice: one.canary["requests"] for one in unsure.slices}
    assert sizes.keys() == {"large", "small"}, "as the users' requests say"
    apart = sum(sizes.values()) - unsure.canary["requests"]
    assert abs(apart) <= 2, "a scrape may fall between the lines by which TorchServe tells of one answer"
    assert {status for (revision, status) in live.seen if revision == R2} == {200}
    if crops:
        assert verdict.decision == "rollback"
        assert verdict.reason.startswith("Rolled back: green ")
        await live.write(canaryTrafficPercent=0)
        await live.until_users_are_on(R1)
    else:
        assert verdict.decision == "promote"
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
