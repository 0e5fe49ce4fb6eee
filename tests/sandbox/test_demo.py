"""The stories that `make release` tells: of models, candidates and pictures that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_release import model_file
from sandbox.demo import STORIES, Story, release
from sandbox.digits import RECIPES
from sandbox.errors import SandboxError

MODELS = Path(__file__).resolve().parents[2] / "include" / "models"


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_story_is_told_of_what_there_is(story: Story) -> None:
    assert {chapter.name for chapter in story.chapters} <= RECIPES.keys()
    name = story.service.partition("/")[2]
    for runtime, model in story.models.items():
        spec = model_file.load(MODELS / f"{model}.yaml")
        assert (spec.model, spec.runtime, spec.service.key) == (model, runtime, story.service)
        assert spec.source.directory == f"candidates/{name}", "where a story offers its candidates"
        shadow = spec.rollout.shadow
        # A release whose samples are not there is refused.
        assert (shadow is None) == (story.chapters[0].samples is None)
        assert shadow is None or shadow.place == f"candidates/samples/{name}"


def test_a_story_that_a_server_does_not_tell_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="the story of wrong is told with torchserve, not with kserve"):
        release(tmp_path, tmp_path, pytest.fail, pytest.fail, runtime="kserve", told="wrong")
