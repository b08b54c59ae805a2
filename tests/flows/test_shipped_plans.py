"""Every recipe that ships can be planned, its DeepSpeed section included; only the text is replaced by a test's own.

What this version cannot run is refused at once, and no comment says otherwise.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from flows.piloting import load_checked, plan_checked, run_recipe
from flows.proving import prove
from flows.screens import plan_screen
from schemas.cluster_config import ClusterKind
from schemas.errors import ConfigError
from schemas.plan import Action
from schemas.stage import Stage, stages_of

RECIPES = sorted((Path(__file__).resolve().parents[2] / "infra" / "recipes").glob("*.yaml"))


def overrides(folder: Path, recipe: Path) -> list[str]:
    """A test's own text and folders."""
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("some text\n" * 100)
    volumes = [f"cluster.kubernetes.volumes=[{{mount: {folder}, claim: headrace}}]"] if is_for_kubernetes(recipe) else []
    return [f"corpus.sources=['{folder}/text']", f"storage.root={folder}/data", f"state={folder}/state", *volumes]


def is_for_kubernetes(recipe: Path) -> bool:
    return recipe.stem.endswith("kubernetes")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_planned(recipe: Path, tmp_path: Path) -> None:
    loaded = load_checked(recipe, overrides(tmp_path, recipe))
    plan = plan_checked(loaded, from_stage=None)
    assert [stage.action for stage in plan.stages] == [Action.BUILD] + [Action.DEPENDS] * 6
    assert plan.stage(Stage.VALIDATE).key.startswith(f"validate/{loaded.config.name}-")
    screen = plan_screen(plan.model_copy(update={"scripts": {}}), config=loaded.config)
    assert not any("?" in line for line in screen)  # every number is known


@pytest.mark.parametrize("recipe", list(filter(is_for_kubernetes, RECIPES)), ids=lambda path: path.stem)
def test_a_cluster_without_a_way_to_it_is_refused_before_anything_is_made(recipe: Path, tmp_path: Path) -> None:
    assignments = [*overrides(tmp_path, recipe), "cluster.kubernetes.kubeconfig=/no/such/file"]
    with pytest.raises(ConfigError) as run:
        run_recipe(recipe, assignments, from_stage=None, as_json=False)
    with pytest.raises(ConfigError) as proof:
        prove(recipe, assignments, kills=1, world=None, seed=0, keep=False, as_json=False)
    for caught in (run, proof):
        (problem,) = caught.value.problems
        assert problem.key == "cluster.kubernetes.kubeconfig"
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_comments_of_recipes_promise_only_what_is_there(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    runs = re.search(rf"headrace run +infra/recipes/{re.escape(recipe.name)}", text) is not None
    kind = load_checked(recipe, ["corpus.sources=['.']"]).config.cluster.kind
    assert runs
    assert ("batch script" in text) == (kind is ClusterKind.SLURM)
    assert ("manifests" in text) == (kind is ClusterKind.KUBERNETES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_plan_for_a_cluster_holds_what_is_submitted_for_every_job_and_no_other_plan_does(recipe: Path, tmp_path: Path) -> None:
    loaded = load_checked(recipe, overrides(tmp_path, recipe))
    plan = plan_checked(loaded, from_stage=None)
    if loaded.config.cluster.kind is ClusterKind.LOCAL:
        assert plan.scripts == {}
        return
    assert list(plan.scripts) == [stage for stage in stages_of(prepared=False) if stage is not Stage.REGISTER]
    if loaded.config.cluster.kind is ClusterKind.KUBERNETES:
        check_manifests(plan.scripts, plan_screen(plan, config=loaded.config))
        return
    assert all(f'--job-name="RUN-{stage.value}-KEY"' in script for stage, script in plan.scripts.items())
    shown = plan_screen(plan, config=loaded.config)
    assert set(plan.scripts[Stage.TRAIN].splitlines()) <= set(shown)
    assert f'#SBATCH --partition="{loaded.config.cluster.resources(Stage.VALIDATE).queue}"' not in shown  # only that of the training is shown


def check_manifests(scripts: Mapping[Stage, str], shown: Sequence[str]) -> None:
    """What is planned for Kubernetes is what today's Kubernetes takes; of many pods the first node's is shown."""
    for stage, text in scripts.items():
        for manifest in yaml.safe_load_all(text):
            assert manifest["metadata"]["annotations"]["headrace/key"] == f"RUN-{stage.value}-KEY"
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    screen = list(yaml.safe_load_all("\n".join(shown[shown.index("apiVersion: v1") :])))
    assert [manifest["kind"] for manifest in screen] == ["Service", "Pod"]
    assert screen[-1]["metadata"]["labels"]["headrace/node-rank"] == "0"
