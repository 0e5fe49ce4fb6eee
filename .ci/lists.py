"""What `make lock` derives from uv.lock: the hashes of torch-cpu.txt, and the lists of the images.

An image's list (`include/images/*/hashed.txt`) is complete, and each file in it has its hash; PyTorch is apart, in
`cpu.txt` and `cuda.txt`, of which the image is told one (TORCH). The same lock gives the same lists.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

from install import needed_uv
from locked import (
    CPU,
    CUDA,
    IMAGES,
    KSERVE,
    LISTED,
    ROOT,
    SetupError,
    cpu_hashes,
    hashed,
    hashes,
    kserve_requirements,
    places,
    version,
    wheels,
)


def write_lists() -> None:
    """All of them anew."""
    start = f"torch-{version('torch')}+cpu-"
    known = {name: digest for name, digest in cpu_hashes().items() if name.startswith(start)} if CPU.exists() else {}
    for place in filter(None, places(os.environ)):
        for name, said in wheels(place, known):
            if name.startswith(start) and said and "linux" in name:
                known.setdefault(name, said)
    head = "# Made by 'make lock': SHA-256 of the wheels of PyTorch without CUDA that could be seen. Do not edit.\n"
    CPU.write_text(head + "".join(f"{known[name]}  {name}\n" for name in sorted(known)), encoding="utf-8")
    uv, plain = needed_uv(), ["--no-hashes", "--no-annotate", "--no-header"]
    for image in ("airflow", "sandbox", "serving"):
        asked = [uv, "export", "--quiet", "--frozen", "--only-group", image, *plain]
        listed = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
        lines = hashed(without_torch(listed), hashes(in_images))
        write_list(f"{image}/hashed.txt", f"the group {image} of uv.lock", lines)
    write_list("serving-kserve/hashed.txt", KSERVE.name, without_torch(kserve_requirements(None).splitlines()))
    torch = f"torch=={version('torch')}"
    digests = " ".join(f"--hash=sha256:{digest}" for name, digest in sorted(known.items()) if in_images(name))
    write_list("cpu.txt", "torch-cpu.txt", [f"{torch}+cpu {digests}"])
    listed = [line for line in LISTED.read_text(encoding="utf-8").splitlines() if torch == line or CUDA.match(line)]
    write_list("cuda.txt", "requirements.txt", hashed(listed, hashes(in_images)))


def in_images(file: str) -> bool:
    """Whether a file may be installed in the images, whose Python is 3.11 on Linux."""
    return file.endswith(".gz") or bool(re.search(r"-(cp311|py2\.py3|py3|cp3\d+-abi3)-.*(linux|any)", file))


def without_torch(lines: Iterable[str]) -> Iterator[str]:
    """The lines that are the same for both builds of PyTorch."""
    return (line for line in lines if not line.startswith(("#", "torch==")) and not CUDA.match(line))


def write_list(name: str, source: str, lines: Iterable[str]) -> None:
    text = f"# Made by 'make lock' from {source}: for the images, each file with its hashes. Do not edit.\n"
    (IMAGES / name).write_text(text + "".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    try:
        write_lists()
    except SetupError as error:
        sys.exit(f"lock: {error}")
