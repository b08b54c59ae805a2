"""Every recipe that ships can be planned, its DeepSpeed section included; only the text is replaced by a test's own."""

from pathlib import Path

import pytest

from flows.piloting import load_checked, plan_checked
from flows.screens import plan_screen
from schemas.plan import Action
from schemas.stage import Stage

RECIPES = sorted((Path(__file__).resolve().parents[2] / "infra" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_planned(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("some text\n" * 100)
    overrides = [f"corpus.sources=['{tmp_path}/text']", f"storage.root={tmp_path}/data", f"state={tmp_path}/state"]
    loaded = load_checked(recipe, overrides)
    plan = plan_checked(loaded, from_stage=None)
    assert [stage.action for stage in plan.stages] == [Action.BUILD] + [Action.DEPENDS] * 6
    assert plan.stage(Stage.VALIDATE).key.startswith(f"validate/{loaded.config.name}-")
    screen = plan_screen(plan, config=loaded.config)
    assert not any("?" in line for line in screen)  # every number is known
