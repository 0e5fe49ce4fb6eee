"""What evaluation costs beside the bare model: 1 000 images of 224x224 through an archive of a ViT-base.

    python benchmarks/evaluation.py                # prints the table
    python benchmarks/evaluation.py --write        # and writes it into this folder's README
    python benchmarks/evaluation.py --images 64    # a quick look

The model is a ViT-base with random weights, exported and packed as a release does it. The bare model is the same
TorchScript in a process of its own, with the same images, read, decoded, preprocessed and batched beforehand, and
warmed up; only its forward passes are timed. One half of them runs before the evaluation and one half after, and CPU
seconds stand beside those of the clock, so that a machine that is busy with other things does not choose the winner.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pages import write

HERE = Path(__file__).parent
PLUGINS = HERE.parent / "plugins"
sys.path[:0] = [str(PLUGINS)]

from model_release.build import archive, export, source  # noqa: E402
from model_release.build.evaluation import answers, images  # noqa: E402

HANDLER = HERE.parent / "include" / "handlers" / "image_classifier.py"
LABELS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
SIDE = 224

BARE = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from image_input import read_image
from image_pixels import preprocess
folder, batch = Path(sys.argv[1]), int(sys.argv[2])
options = json.loads((folder / "model.json").read_text())["preprocessing"]
files = json.loads(sys.stdin.read())
pixels = [preprocess(read_image(Path(file).read_bytes()), options) for file in files]
batches = [torch.from_numpy(np.stack(pixels[i : i + batch])) for i in range(0, len(pixels), batch)]
model = torch.jit.load(folder / "model.pt").eval()
with torch.inference_mode():
    for size in {len(one) for one in batches}:
        for _ in range(3):
            model(batches[0][:size])
    wall, cpu = time.perf_counter(), time.process_time()
    for one in batches:
        model(one)
    print(time.perf_counter() - wall, time.process_time() - cpu)
"""


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of CPU on all cores together."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="the default of a model file")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="benchmark-") as scratch:
        table = compare(Path(scratch), options.images, options.batch)
    print(f"\n{table}")
    if options.write:
        write({"evaluation-speed": table})


def compare(scratch: Path, count: int, batch: int) -> str:
    mar = packed(scratch)
    with zipfile.ZipFile(mar) as content:
        content.extractall(scratch / "bare")
    draw(scratch / "images", count)
    given = images.from_folder(scratch / "images", "images/", say).bring(scratch, say)
    everything = [file for _, file in given]
    alone = bare(scratch / "bare", everything[0::2], batch)
    lines: list[str] = []
    before = Cost(time.perf_counter(), children())
    found = answers.run(mar, given, batch=batch, what="the archive", log=lines.append)
    whole = Cost(time.perf_counter() - before.wall, children() - before.cpu)
    say(lines[-1])
    asked = float(lines[-1].split(" images in ")[1].split(" s ")[0])
    again = bare(scratch / "bare", everything[1::2], batch)
    alone = Cost(alone.wall + again.wall, alone.cpu + again.cpu)
    if any(answer.label is None for answer in found.values()):
        raise SystemExit("an image got no answer; nothing was measured")
    rows = [
        "| what | seconds | images/s | beside the bare model | CPU seconds | beside the bare model |",
        "|---|---:|---:|---:|---:|---:|",
        f"| bare model, tensors ready | {alone.wall:.1f} | {count / alone.wall:.2f} | 1 | {alone.cpu:.1f} | 1 |",
        f"| evaluation: read, decode, preprocess, answer | {asked:.1f} | {count / asked:.2f} | "
        f"{asked / alone.wall:.3f} | | |",
        f"| evaluation, whole: with its process, the archive unpacked, loaded and warmed up | {whole.wall:.1f} | "
        f"{count / whole.wall:.2f} | **{whole.wall / alone.wall:.3f}** | {whole.cpu:.1f} | "
        f"**{whole.cpu / alone.cpu:.3f}** |",
    ]
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", str(cores))
    about = (
        f"{count} images of {SIDE}x{SIDE}, JPEG, in batches of {batch}; OpenMP threads: {threads} on {cores} cores; "
        f"load average of the machine meanwhile: {os.getloadavg()[2]:.1f}"
    )
    return f"{about}:\n\n" + "\n".join(rows)


def packed(scratch: Path) -> Path:
    """The .mar of a ViT-base with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: n for n, label in enumerate(LABELS)}}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**names))
    model.save_pretrained(scratch / "vit-base")
    size = {"height": SIDE, "width": SIDE}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size}
    (scratch / "vit-base" / "preprocessor_config.json").write_text(json.dumps(processor))
    say(f"a ViT-base of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
    del model
    checkpoint = source.fetch({"directory": str(scratch / "vit-base")}, scratch / "checkpoint")
    export.export(
        checkpoint.directory, scratch / "export", handler=HANDLER, fingerprint=checkpoint.fingerprint, log=say
    )
    return archive.archive(scratch / "export", "vit-base", HANDLER, scratch / "archive", log=say).file


def draw(folder: Path, count: int) -> None:
    """JPEGs with the size and detail of photographs: smooth shapes with grain."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        target = folder / LABELS[number % len(LABELS)] / f"{number:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
        grain = random.integers(-12, 13, smooth.shape, dtype=np.int16)
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(target, quality=90)


def bare(folder: Path, given: list[Path], batch: int) -> Cost:
    """What the forward passes alone cost."""
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(folder), str(batch)],
        input=json.dumps([str(file) for file in given]),
        capture_output=True,
        text=True,
        check=True,
    )
    wall, cpu = map(float, done.stdout.split())
    say(f"bare model: {len(given)} images in {wall:.1f} s, {cpu:.1f} s of CPU")
    return Cost(wall, cpu)


def children() -> float:
    """Seconds of CPU that processes which have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
