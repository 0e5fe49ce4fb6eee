"""KServe's own Python model server (`kserve` on PyPI): what a version for it holds, and how it is opened without it.

```
config/serving.json         which network, the torch it was made by, and how many requests go through it at once
model-store/<service>.zip   model.pt2 (torch.export) or model.pt (TorchScript), model.json, the model class
```

The server is started by include/images/serving-kserve/server.py, which reads the first and unpacks the second.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "kserve"
#: What can be served of a model, best first.
ARTIFACTS = ("torch.export", "torchscript")
#: The model class's file; `image_*.py` beside it go with it.
ENTRY = "kserve_model.py"
SUFFIX = ".zip"
#: Beside the packages of the export, what shapes an archive's bytes: nothing.
PACKAGES: tuple[str, ...] = ()
#: Its ServingRuntime; it answers a client's fault with 400 by itself.
MANIFEST = "include/manifests/serving_runtime_kserve.yaml"
HIDE_STATUS: tuple[str, ...] = ()
#: A request's time is Knative's to limit, and no matter of an archive.
SETTINGS: tuple[str, ...] = ()
ENVIRONMENT: dict[str, str] = {}

CONFIG = "config/serving.json"
_STORE = "model-store"
_FILES = {"torch.export": "model.pt2", "torchscript": "model.pt"}


def is_whole(directory: Path, service: str) -> bool:
    """Whether `write` has ended in this folder."""
    return (directory / _STORE / f"{service}{SUFFIX}").is_file() and (directory / CONFIG).is_file()


def write(
    directory: Path,
    export_dir: Path,
    service: str,
    handler: Path,
    scratch: Path,  # noqa: ARG001 - it needs none
    *,
    response_timeout: int,  # noqa: ARG001 - Knative's to keep
    batching: Mapping[str, int] | None = None,
) -> None:
    """Puts what the server reads of the export in `export_dir` into the empty folder `directory`."""
    from model_release.build import export
    from model_release.build.runtimes import handler_files, stored_zip

    report = export.load(export_dir).report
    network = _FILES[report["artifact"]]
    content = {path.name: path for path in handler_files(handler)}
    content |= {name: export_dir / name for name in ("model.json", network)}
    for name in ("config", _STORE):
        (directory / name).mkdir()
    stored_zip(content, directory / _STORE / f"{service}{SUFFIX}")
    said: dict[str, Any] = {
        "runtime": NAME,
        "service": service,
        "artifact": report["artifact"],
        "torch": report["toolchain"]["torch"],
    }
    if batching:
        said["batching"] = dict(batching)
    (directory / CONFIG).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# Where there is no KServe: nothing of this project is imported below.


def _stand_in() -> None:
    """Provides the names of `kserve` and `prometheus_client` that the model class imports, where they are missing."""

    class Model:
        def __init__(self, name: str) -> None:
            self.name, self.ready = name, False

    class InvalidInput(ValueError):
        pass

    class Metric:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def labels(self, *_: Any, **__: Any) -> Metric:
            return self

        def inc(self, _: float = 1) -> None:
            """Nobody counts here."""

        observe = inc

    homes: dict[str, dict[str, Any]] = {
        "kserve": {"Model": Model},
        "kserve.errors": {"InvalidInput": InvalidInput},
        "prometheus_client": {"Counter": Metric, "Histogram": Metric},
    }
    packages = {home.partition(".")[0] for home in homes}
    missing = {name for name in packages if name not in sys.modules and importlib.util.find_spec(name) is None}
    for home, names in homes.items():
        if home.partition(".")[0] in missing:
            sys.modules[home] = ModuleType(home)
            vars(sys.modules[home]).update(names)


class Loaded:
    """The archive's own model class, loaded as the server loads it. `holder.model` is the network."""

    def __init__(self, folder: Path, name: str) -> None:
        _stand_in()
        sys.path.insert(0, str(folder))
        module = importlib.import_module(ENTRY.removesuffix(".py"))
        self._bad_input: type[Exception] = importlib.import_module("kserve.errors").InvalidInput
        self._model: Any = module.ImageClassifier(name, folder)
        self._model.load()
        self.holder: Any = self._model.images

    def predict(self, instances: list[Any]) -> list[Any]:
        """The answers to a request in V1. Raises what the model class raises."""
        return list(self._ask({"body": {"instances": instances}})["predictions"])

    def is_clients(self, error: Exception) -> bool:
        """Whether it is answered with 400."""
        return isinstance(error, self._bad_input)

    def answers(self, pictures: list[bytes]) -> list[Any]:
        """For each picture its labels, best first, or, as text, why it is refused; read one by one, then through the
        network together. Raises where the network fails: for all of them."""
        rows: list[Any] = []
        for picture in pictures:
            try:
                rows.append(self._model.read({"body": picture}))
            except self._bad_input as error:
                rows.append(str(error))
        requests = [row for row in rows if not isinstance(row, str)]
        labels = iter(self._model.classified(requests)[0])
        return [row if isinstance(row, str) else next(labels) for row in rows]

    def _ask(self, fields: dict[str, Any]) -> Any:
        async def asked() -> Any:
            return await self._model.predict(await self._model.preprocess(fields))

        return asyncio.run(asked())
