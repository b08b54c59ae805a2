"""Files that are code to whoever reads them carelessly: pickles, a model's own modules, YAML tags, sequences for terminals. None is ever run."""

import ast
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.storage import looks_like_pickle
from schemas.errors import ConfigError, HeadraceError, InputError, UnsafeFileError
from schemas.exit_code import ExitCode
from schemas.manifest import ShardManifest
from schemas.recipe import load_recipe
from tasks.planning import make_plan
from tests.fakes.booby_traps import TRAPS, booby_traps
from tests.fakes.tiny_pipeline import ROOT, Project, make_project


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Is there after a booby trap went off."""
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("security") / "project")


def plan(project: Project, *assignments: str) -> Any:
    return make_plan(load_recipe(project.recipe, assignments).config)


def test_the_traps_would_go_off(canary: Path) -> None:
    pickle.loads(booby_traps(canary)["tokenizer.pkl"])
    assert canary.exists()


def write_model(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400, **config}))
    (folder / "model.safetensors").write_bytes(b"not looked at")
    return folder


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("below", ["", "sub"])
def test_a_pickle_beside_a_pretrained_model_is_refused_by_the_plan(project: Project, tmp_path: Path, canary: Path, trap: str, below: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / below).mkdir(exist_ok=True)
    (folder / below / trap).write_bytes(booby_traps(canary)[trap])
    with pytest.raises(UnsafeFileError, match="pickle") as caught:
        plan(project, "model.config=null", f"model.pretrained={folder}")
    assert str(folder / below / trap) in caught.value.what
    assert not canary.exists()


@pytest.mark.parametrize("trap", TRAPS)
def test_a_pickle_beside_a_tokenizer_is_refused_by_the_plan(project: Project, tmp_path: Path, canary: Path, trap: str) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / trap).write_bytes(booby_traps(canary)[trap])
    for path in (tmp_path, tmp_path / trap):
        with pytest.raises(UnsafeFileError, match="looks like a pickle"):
            plan(project, f"tokenizer.path={path}")
    assert not canary.exists()


def test_raw_tensors_are_no_pickles(tmp_path: Path) -> None:
    (tmp_path / "rank-0000.bin").write_bytes(np.arange(8, dtype="<f4").tobytes())
    os.mkfifo(tmp_path / "pipe.bin")
    assert not looks_like_pickle(tmp_path / "rank-0000.bin")
    assert not looks_like_pickle(tmp_path / "pipe.bin"), "and a pipe is not opened"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \*\.safetensors"),
        (lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}'), "is an adapter"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "weights.safetensors").symlink_to("/etc/hostname"), "symbolic link"),
    ],
)
def test_a_pretrained_folder_that_cannot_be_trusted_is_refused_by_the_plan(
    project: Project, tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    folder = write_model(tmp_path / "model")
    assert plan(project, "model.config=null", f"model.pretrained={folder}")
    spoil(folder)
    with pytest.raises(HeadraceError, match=says) as caught:
        plan(project, "model.config=null", f"model.pretrained={folder}")
    assert caught.value.exit_code in (ExitCode.USAGE, ExitCode.VERIFICATION)


def test_every_loader_of_models_is_told_never_to_run_their_code() -> None:
    """`trust_remote_code` left out is not the same as False: transformers then asks at the terminal."""
    silent = []
    for path in sorted(path for package in ("schemas", "cluster", "tasks", "flows") for path in (ROOT / package).rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "from_pretrained" in text or "from_config" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("from_pretrained", "from_config"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if options.get("trust_remote_code") != "False":
                    silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "evil"])
def test_code_in_a_pretrained_folder_is_never_run(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A known kind of model is built from transformers' own code; an unknown one, which only the folder's code could build, is refused."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tasks.train.model import build_model
    from tests.fakes.in_process_work import config_with

    folder = tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        folder
    )
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = json.loads((folder / "config.json").read_text()) | {"model_type": kind, "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    code = f"import os; os.mkdir({str(canary)!r})\nclass Config: pass\nclass Model: pass\n"
    for name in ("evil.py", "modeling_evil.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(code)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    manifest = ShardManifest(
        layout="fixed", dtype="uint16", sequence_length=8, vocab_size=64, end_of_text_id=0, tokenizer_hash="", engine="huggingface", shards=()
    )
    if kind == "llama":
        assert isinstance(build_model(config_with(model={"pretrained": str(folder)}), manifest=manifest).module, torch.nn.Module)
    else:
        with pytest.raises(InputError, match="no code of the folder is run"):
            build_model(config_with(model={"pretrained": str(folder)}), manifest=manifest)
    assert not canary.exists()


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.mkdir [CANARY]", "!!python/object/new:os.mkdir [CANARY]", "!!python/name:os.mkdir", "!!python/module:os", "!evil x"],
)
def test_yaml_tags_make_no_objects(project: Project, canary: Path, value: str) -> None:
    recipe = project.folder / "tags.yaml"
    value = value.replace("CANARY", str(canary))
    recipe.write_text(f"{project.recipe.read_text()}\nstate: {value}\n")
    for path, assignments in ((recipe, ()), (project.recipe, (f"state={value}",))):
        with pytest.raises(ConfigError, match="could not determine a constructor for the tag") as caught:
            load_recipe(path, assignments)
        assert caught.value.exit_code is ExitCode.USAGE
    assert not canary.exists()


def test_names_of_files_cannot_command_a_terminal(project: Project) -> None:
    folder = project.folder / "escapes"
    folder.mkdir(exist_ok=True)
    (folder / "a\x1b[2J\x1b]0;evil\x07\u202e.txt").symlink_to("/etc/hostname")
    with pytest.raises(InputError) as caught:
        plan(project, f"corpus.sources=[{folder}]")
    shown = str(caught.value)
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert r"a\x1b[2J\x1b]0;evil\x07\u202e.txt" in shown
