"""`cluster.kubernetes`: what is refused, with the key and what was probably meant, and what a stage gets."""

from typing import Any

import pytest

from schemas.cluster_config import ClusterConfig
from schemas.errors import ConfigError
from schemas.kubernetes_config import KubernetesConfig
from schemas.recipe import load_recipe
from schemas.stage import Stage

BASE = """
name: demo
corpus: {sources: [/]}
model: {config: {model_type: llama}}
training: {steps: 1000}
cluster:
  kind: kubernetes
  kubernetes:
"""


@pytest.mark.parametrize(
    ("line", "key", "says"),
    [
        ("tolerationz: []", "cluster.kubernetes.tolerationz", "nearest valid: cluster.kubernetes.tolerations"),
        ("queueing: kue", "cluster.kubernetes.queueing", "nearest valid: kueue"),
        ("spread: always", "cluster.kubernetes.spread", "preferred"),
        ("pull_policy: never", "cluster.kubernetes.pull_policy", "nearest valid: Never"),
        ("service_account: My_Account", "cluster.kubernetes.service_account", ""),
        ("shm_size: 16GB", "cluster.kubernetes.shm_size", ""),
        ("run_as_user: 0", "cluster.kubernetes.run_as_user", "nearest valid: 1"),
        ("volumes: [{mount: /a}]", "cluster.kubernetes.volumes.0", "one of claim, host_path"),
        ("volumes: [{mount: /a, claim: x, host_path: /b}]", "cluster.kubernetes.volumes.0", "one of claim, host_path"),
        ("volumes: [{mount: /a/../b, claim: x}]", "cluster.kubernetes.volumes.0", "must not contain .."),
        ("volumes: [{mount: /a, claim: x}, {mount: /a/, claim: y}]", "cluster.kubernetes", "/a is mounted twice"),
        ("tolerations: [{operator: Exists, value: x}]", "cluster.kubernetes.tolerations.0", "value has no effect"),
        ("tolerations: [{value: x}]", "cluster.kubernetes.tolerations.0", "key is missing"),
        ("tolerations: [{key: a, toleration_s: 5}]", "cluster.kubernetes.tolerations.0", "toleration_s has no effect"),
        ("env: {AWS_SECRET_ACCESS_KEY: abc}", "cluster.kubernetes", "looks like a credential"),
        ("env: {A-B: abc}", "cluster.kubernetes.env", ""),
        ("pod_patch: {hostNetwork: true}", "cluster.kubernetes", "'hostNetwork' is no part of a pod template"),
        ("stages: {trian: {}}", "cluster.kubernetes.stages", "train"),
        ("queueing: kueue", "cluster", "queueing has no effect without queue"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_key(tmp_path: Any, line: str, key: str, says: str) -> None:
    recipe = tmp_path / "my.yaml"
    recipe.write_text(f"{BASE}    {line}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe)
    (problem,) = caught.value.problems
    assert problem.key.startswith(key)
    assert says in str(problem)


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ({"kind": "slurm", "kubernetes": {"spread": "none"}}, "kubernetes has no effect with kind: slurm"),
        ({"kind": "kubernetes", "queue": "gpu"}, "queue has no effect without kubernetes.queueing"),
        ({"kind": "kubernetes", "setup": ["module load cuda"]}, "setup has no effect with kind: kubernetes"),
    ],
)
def test_what_has_no_effect_is_said_so(cluster: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ClusterConfig.model_validate(cluster)


def test_what_a_stage_names_replaces_what_stands_above() -> None:
    config = KubernetesConfig.model_validate(
        {
            "priority_class": "low",
            "node_selector": {"pool": "cpu"},
            "secrets": ["s3"],
            "stages": {"train": {"node_selector": {"pool": "a100"}, "priority_class": None}},
        }
    )
    train, export = config.pods(Stage.TRAIN), config.pods(Stage.EXPORT)
    assert (train.node_selector, train.priority_class, train.secrets) == ({"pool": "a100"}, None, ("s3",))
    assert (export.node_selector, export.priority_class) == ({"pool": "cpu"}, "low")
