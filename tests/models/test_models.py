"""The tiny half of `make models`: what each architecture becomes in this project, beside transformers' own pipeline on
eleven pictures. `make models` tries the variants of each too, the archives, and full-size configurations; every rule of
a processor is in tests/handlers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers

# `python tests/models` has its own folder on the path, and these modules know each other by that.
sys.path.insert(0, str(Path(__file__).parent))

from cases import REFUSED, Case, kinds, tiny
from full import FULL
from run import LIMIT, Row, row
from small import TINY

#: One of each architecture, and what is refused or passes beside it.
CASES = [case for case in tiny() if not case.name or case.kind == "pp_lcnet" or str(case) in REFUSED]


def test_every_architecture_of_the_installed_transformers_is_in_the_list() -> None:
    """A new transformers brings new ones: each is described in cases.py, or refused by a line that is right."""
    assert [kind for kind in kinds() if kind not in TINY] == []
    assert [kind for kind in TINY if kind not in kinds()] == []


def test_the_page_has_a_row_for_every_case_and_is_of_this_transformers() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert f"transformers {transformers.__version__} maps" in page, "make models writes it anew"
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    named = [(row[0].removeprefix("| "), row[1]) for row in rows]
    assert [case for case in (*tiny(), *FULL) if (case.kind, case.name) not in named] == []
    assert "**wrong**" not in page


def test_what_is_refused_is_among_the_cases() -> None:
    assert set(REFUSED) <= {str(case) for case in CASES}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> object:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.stack
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_answers_as_the_pipeline_does_or_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    found: Row = row(case, tmp_path, whole=False)
    assert found.wrong == ""
    if str(case) in REFUSED:
        assert REFUSED[str(case)] in found.refused
        assert not (tmp_path / "export" / "model.pt").exists()
        return
    assert (found.refused, found.untrained) == ("", "")
    assert found.difference is not None
    assert found.difference <= LIMIT
