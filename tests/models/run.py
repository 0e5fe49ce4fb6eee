"""One model through export → archive → bare check → handler, beside the transformers pipeline, on eleven pictures."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from cases import Case
from pictures import pictures, sixteen_bits
from PIL import Image, ImageOps
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from model_release.build import archive, export, source, timm_config, timm_model, trace
from model_release.build.original import logits_of
from model_release.errors import ReleaseError

ROOT = Path(__file__).resolve().parents[2]
HANDLER = ROOT / "include" / "handlers" / "image_classifier.py"
#: How far a probability may be from the pipeline's.
LIMIT = 1e-4
#: A count that no other part of a model has, so that the head is found by it.
LABELS = 11
#: Standard deviation of the logits, as trained classifiers have it.
SPREAD = 2.0


class NotMade(Exception):
    """The installed transformers cannot make this model at all; the message says why."""


@dataclass(frozen=True)
class Row:
    """What became of a case. `refused` is the product's own sentence, `wrong` a fault of it: an answer that is not the
    pipeline's, or an end without a sentence. `made` is False where transformers itself cannot make the model, `ran`
    where there was no time for it. `untrained` says why the statistics are not those of a trained one."""

    case: Case
    seconds: float
    difference: float | None = None
    refused: str = ""
    wrong: str = ""
    made: bool = True
    ran: bool = True
    untrained: str = ""

    @property
    def passed(self) -> bool:
        return not self.refused and not self.wrong and self.made and self.ran


def row(case: Case, folder: Path, *, whole: bool = True, own_process: bool = False) -> Row:
    """Tries a case in the empty `folder`. With `whole` the archive is made and checked too; with `own_process` the
    export runs in its own process, as in a build."""
    began = time.monotonic()

    def seconds() -> float:
        return time.monotonic() - began

    try:
        untrained = make(case, folder / "checkpoint")
    except NotMade as reason:
        return Row(case, seconds(), refused=str(reason), made=False)
    try:
        served = _released(folder, whole, own_process)
        difference = _beside_the_pipeline(folder / "checkpoint", served)
    except ReleaseError as refusal:
        sentence = str(refusal).replace(str(folder), "…")
        several = "several lines" if "\n" in sentence else ""
        return Row(case, seconds(), refused=sentence, wrong=several, untrained=untrained)
    except AssertionError as wrong:
        return Row(case, seconds(), wrong=str(wrong).splitlines()[0], untrained=untrained)
    except Exception as crash:
        return Row(case, seconds(), wrong=_first_line(crash), untrained=untrained)
    return Row(case, seconds(), difference, untrained=untrained)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def make(case: Case, folder: Path) -> str:
    """Saves the case's checkpoint into `folder`: random weights that answer as trained ones do. Returns why they do
    not, where that failed. Raises `NotMade`."""
    folder.mkdir(parents=True)
    if case.bare:
        mapped = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[case.kind]
        config = {"architectures": [mapped], "model_type": case.kind, "id2label": {"0": "a", "1": "b"}, **case.config}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "preprocessor_config.json").write_text(json.dumps(_processor(case)))
        (folder / "model.safetensors").write_bytes(b"")
        return ""
    if not case.config and "no tiny configuration" in case.name:
        raise NotMade(case.name.strip("()"))
    torch.manual_seed(0)
    if case.kind == "timm_wrapper":
        return _make_timm(case, folder)
    names = {index: f"class {index}" for index in range(LABELS)}
    options = dict(case.config)
    attention = {"attn_implementation": options.pop("attn_implementation")} if "attn_implementation" in options else {}
    try:
        config = transformers.AutoConfig.for_model(
            case.kind, **options, id2label=names, label2id={name: index for index, name in names.items()}
        )
        mapped = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[case.kind]
        name = case.architecture or (mapped if isinstance(mapped, str) else mapped[0])
        model = getattr(transformers, name)._from_config(config, **attention)
    except Exception as error:
        raise NotMade(f"transformers makes none: {str(error).strip().splitlines()[0]}") from error
    processor = _processor(case)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    model.config.return_dict = True
    untrained = _train(model, lambda: transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"))
    model.config.return_dict = case.config.get("return_dict", True)
    model.save_pretrained(folder)
    return untrained


def _make_timm(case: Case, folder: Path) -> str:
    """As transformers' timm_wrapper saves it, which itself needs torchvision; or, by the case's name, as timm does."""
    config = {"num_classes": LABELS, "label_names": [f"class {index}" for index in range(LABELS)], **case.config}
    network = _timm_network(config)
    transform = timm_model.EvalTransform(
        timm_config.options({**config, "pretrained_cfg": {"input_size": [3, 64, 64]}}, "")
    )
    untrained = _train(timm_model.TimmClassifier(network, "", None), lambda: transform)
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if "own form" not in case.name:
        weights = {f"timm_model.{name}": tensor for name, tensor in weights.items()}
        config = {"architectures": ["TimmWrapperForImageClassification"], "model_type": "timm_wrapper", **config}
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    return untrained


def _timm_network(config: dict[str, Any]) -> Any:
    timm = timm_model.imported()
    return timm.create_model(config["architecture"], num_classes=LABELS, **config.get("model_args", {}))


def _processor(case: Case) -> dict[str, Any]:
    mapped = IMAGE_PROCESSOR_MAPPING_NAMES.get(case.kind) or {}
    name = case.image_processor or mapped.get("pil") or mapped.get("torchvision") or "ViTImageProcessor"
    return {"image_processor_type": name.removesuffix("Pil"), **case.processor}


def _train(model: Any, processor_of: Callable[[], Any]) -> str:
    """BatchNorms get the statistics of some batches, and the head is scaled until logits lie apart as trained ones.
    Returns why not, where it cannot be done; whether the model can be released all the same is for the export to say.
    """
    try:
        processor = processor_of()
        shown = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in list(pictures().values())[:4]]
        batches = [dict(processor(images=picture, return_tensors="pt")) for picture in shown]
    except Exception as error:
        return f"no processor: {_first_line(error)}"
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        if module.track_running_stats:
            # Running statistics of one picture after another, which are not each picture's own.
            module.momentum = 0.3
            if module.affine:  # EfficientNet draws them around 0, and the pictures are lost on the way
                torch.nn.init.normal_(module.weight, 1.0, 0.2)
                torch.nn.init.normal_(module.bias, 0.0, 0.2)
    try:
        with torch.no_grad():
            # A batch of two: BatchNorm on 1x1 maps knows no statistics of one.
            model.train()
            for _ in range(3 if norms else 0):
                for batch in batches:
                    noisy = {name: torch.cat([value, _noisy(value)]) for name, value in batch.items()}
                    model(**noisy)
            model.eval()
            logits = torch.cat([logits_of(model(**batch)) for batch in batches])
            spread = float(logits.std())
            if not 0 < spread < float("inf"):
                return f"its logits' standard deviation is {spread}"
            for value in model.parameters():
                if value.ndim and value.shape[0] == LABELS:
                    value *= SPREAD / spread
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        return _first_line(error)
    return ""


def _noisy(value: torch.Tensor) -> torch.Tensor:
    return value + torch.randn_like(value) * 0.2 if value.is_floating_point() else value


def _released(folder: Path, whole: bool, own_process: bool) -> Any:
    """The loaded handler of what a build makes of the checkpoint. Raises the product's own refusals."""
    fetched = source.fetch({"directory": str(folder / "checkpoint")}, folder / "fetched")
    output = folder / "export"
    if own_process:
        export.export(fetched.directory, output, handler=HANDLER, fingerprint=fetched.fingerprint)
    else:
        output.mkdir()
        request = {"checkpoint": str(fetched.directory), "output": str(output), "handlers": str(HANDLER.parent)}
        with trace._known_warnings_filtered():
            trace.run({**request, "samples": [], "fold": False, "artifacts": ["torchscript"]}, lambda _: None)
    if whole:
        made = archive.archive(output, "model", HANDLER, folder / "archive")
        archive.check(made, output)
    return _handler(output)


def _handler(folder: Path) -> Any:
    from ts.context import Context, RequestProcessor

    if str(HANDLER.parent) not in sys.path:
        sys.path.insert(0, str(HANDLER.parent))
    handler = importlib.import_module("image_classifier").ImageClassifier()
    manifest = {"model": {"modelName": "m", "modelVersion": "1.0", "serializedFile": "model.pt"}}
    context = Context("m", str(folder), manifest, 1, None, "0.12.0")
    handler.initialize(context)
    handler.enveloped, handler.top_k = False, LABELS

    def ask(picture: bytes) -> list[dict[str, Any]]:
        context.request_processor = [RequestProcessor({})]
        (answer,) = handler.handle([{"body": picture}], context)
        assert isinstance(answer, list), f"the handler refuses a picture: {answer['error']}"
        return answer

    return ask


def _beside_the_pipeline(checkpoint: Path, ask: Any) -> float:
    """The largest difference of any probability of any picture. Raises `AssertionError` for another answer."""
    timm = timm_config.is_timm(json.loads((checkpoint / "config.json").read_text(encoding="utf-8")))
    pipeline = _timm_pipeline(checkpoint) if timm else _pipeline(checkpoint)
    worst = 0.0
    for name, picture in pictures().items():
        shown = Image.open(io.BytesIO(picture))
        if name == "16-bit":
            # The pipeline would clip it at 255, which turns the picture white: it gets what every viewer shows.
            shown = Image.fromarray((sixteen_bits() // 257).astype(np.uint8))
        expected = pipeline(shown, top_k=LABELS)
        scores = {answer["label"]: answer["score"] for answer in expected}
        found = ask(picture)
        worst = max(worst, *(abs(answer["score"] - scores[answer["label"]]) for answer in found))
        assert worst <= LIMIT, f"{name}: a probability differs from the pipeline's by {worst:.2g}"
        assert found[0]["label"] == expected[0]["label"], f"{name}: {found[0]} where the pipeline says {expected[0]}"
    return worst


def _pipeline(checkpoint: Path) -> Any:
    model = transformers.AutoModelForImageClassification.from_pretrained(checkpoint)
    model.config.return_dict = True
    if type(model).__name__ == "PPLCNetForImageClassification":
        # Its last hidden state are the logits, as its own documentation reads them; the pipeline asks for `logits`.
        forward = model.forward
        model.forward = lambda **inputs: ImageClassifierOutput(logits=forward(**inputs).last_hidden_state)
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    return transformers.pipeline("image-classification", model=model, image_processor=processor, device="cpu")


def _timm_pipeline(checkpoint: Path) -> Any:
    """What transformers' does with its timm_wrapper, which needs torchvision: timm's network behind timm's transform,
    which is held to torchvision's in tests/build/test_timm.py."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    network = _timm_network(config).eval()
    weights = safetensors.torch.load_file(checkpoint / "model.safetensors")
    network.load_state_dict({name.removeprefix("timm_model."): tensor for name, tensor in weights.items()})
    transform = timm_model.EvalTransform(timm_config.options(config, ""))
    several = config.get("problem_type") == "multi_label_classification"

    def ask(picture: Image.Image, top_k: int) -> list[dict[str, Any]]:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        with torch.inference_mode():
            logits = network(transform(upright)["pixel_values"])[0]
        scores = logits.sigmoid() if several else logits.softmax(-1)
        best = scores.topk(top_k)
        return [
            {"label": config["label_names"][index], "score": score}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    return ask


def clean(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
