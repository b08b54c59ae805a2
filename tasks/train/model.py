"""The model: from a transformers configuration, a local pretrained folder, or the user's own factory.

Never remote code, never a pickle, never a download. Initial weights depend on `training.seed` and on the parameter's module
alone: not on the rank, the world size or the ZeRO stage.
"""

import contextlib
import importlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from schemas.config import RunConfig
from schemas.errors import ConfigError, InputError, Problem, UnsafeFileError
from schemas.frozen import thaw
from schemas.manifest import ShardManifest
from schemas.recipe_config import ModelConfig
from tasks.train.compatibility import ATTENTION_KEY, attention_of
from tasks.train.muon import ORTHOGONAL
from tasks.train.order import stream_seed

logger = logging.getLogger(__name__)

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class BuiltModel:
    """A model on the CPU (or partitioned over the ranks, under ZeRO 3), in fp32 unless partitioned."""

    module: nn.Module
    """Called with `input_ids` and `labels`, returns an object with `loss` and `logits`."""
    model_config: Mapping[str, Any]
    """What an exported model's `config.json` holds; empty for a factory without a transformers configuration."""
    num_parameters: int
    """Trained parameters; tied ones count once."""


def build_model(
    config: RunConfig, *, manifest: ShardManifest, deepspeed_options: Mapping[str, Any] | None = None, initialise: bool = True
) -> BuiltModel:
    """Returns the model of a recipe.

    Args:
        config: the run's configuration.
        manifest: the token shards; its `vocab_size` fills in the model's.
        deepspeed_options: the DeepSpeed configuration when parameters are to be partitioned as they are made (ZeRO 3).
        initialise: False where a checkpoint is loaded next: weights of a `model.config` then hold whatever memory held.

    Raises:
        ConfigError: the model does not fit the tokens.
        InputError: a pretrained folder or a factory cannot be used.
    """
    model = config.model
    if model.config is not None:
        values, seed = thaw(model.config), config.training.seed
        module = _from_config(values, manifest=manifest, seed=seed, deepspeed_options=deepspeed_options, everything=initialise)
    elif model.pretrained is not None:
        module = _from_pretrained(Path(model.pretrained), manifest=manifest)
    else:
        module = _from_factory(model, manifest=manifest, seed=config.training.seed)
    if config.training.activation_checkpointing:
        _checkpoint_activations(module)
    module.train()
    num_parameters = sum(full_size(parameter) for parameter in module.parameters() if parameter.requires_grad)
    return BuiltModel(module, model_config=_config_mapping(module), num_parameters=num_parameters)


def full_size(parameter: nn.Parameter) -> int:
    """Returns the number of elements of a whole parameter, also of one that ZeRO 3 partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Returns the shape of a whole parameter, also of one that ZeRO 3 partitioned."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def optimizer_groups(module: nn.Module, *, weight_decay: float, orthogonal: bool = False) -> list[dict[str, Any]]:
    """Returns the optimizer's parameter groups: matrices decay; biases, norms and embeddings (also tied ones) do not.

    Args:
        module: the model.
        weight_decay: of matrices.
        orthogonal: whether the optimizer is Muon: then the matrices inside of the model, without the output matrix, are a group of their own.
    """
    embeddings = {id(parameter) for part in module.modules() if isinstance(part, nn.Embedding) for parameter in part.parameters(recurse=False)}
    output = _output_matrix(module) if orthogonal else None
    inner: list[nn.Parameter] = []
    decaying: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            decays = len(full_shape(parameter)) >= 2 and id(parameter) not in embeddings
            (spared if not decays else inner if orthogonal and parameter is not output else decaying).append(parameter)
    marks = ({ORTHOGONAL: True}, {ORTHOGONAL: False}) if orthogonal else ({}, {})
    groups: tuple[dict[str, Any], ...] = (
        {"params": inner, "weight_decay": weight_decay, **marks[0]},
        {"params": decaying, "weight_decay": weight_decay, **marks[1]},
        {"params": spared, "weight_decay": 0.0, **marks[1]},
    )
    return [group for group in groups if group["params"]]


def _output_matrix(module: nn.Module) -> nn.Parameter | None:
    """Returns the matrix that makes logits: the one that a transformers model names, or else the last matrix of the module."""
    named = getattr(module, "get_output_embeddings", None)
    if named is not None:
        head = named()
        return cast(nn.Parameter, head.weight) if head is not None else None
    matrices = [parameter for parameter in module.parameters() if len(full_shape(parameter)) >= 2]
    return matrices[-1] if matrices else None


def _from_config(
    values: dict[str, Any], *, manifest: ShardManifest, seed: int, deepspeed_options: Mapping[str, Any] | None, everything: bool
) -> nn.Module:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    model_type, attention = values.pop("model_type"), attention_of(values)
    values.pop(ATTENTION_KEY, None)  # how the model is run here; a loaded one chooses for itself
    ids = {"vocab_size": manifest.vocab_size, "bos_token_id": manifest.end_of_text_id, "eos_token_id": manifest.end_of_text_id}
    try:
        hf_config = AutoConfig.for_model(model_type, **{**ids, **values, "use_cache": False})
        with _partition_on_creation(deepspeed_options), no_init_weights():
            module = AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError((Problem("model.config", repr(model_type), f"transformers refuses it: {' '.join(str(error).split())}"),)) from error
    _initialise(module, seed=seed, partitioned=deepspeed_options is not None, everything=everything)
    module.tie_weights()
    return cast(nn.Module, module)


@contextlib.contextmanager
def _partition_on_creation(deepspeed_options: Mapping[str, Any] | None) -> Iterator[None]:
    """Partitions every parameter over the ranks as soon as its module exists, so that no rank holds the whole model."""
    if deepspeed_options is None:
        yield
        return
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path=dict(deepspeed_options)):
        yield


def _initialise(model: Any, *, seed: int, partitioned: bool, everything: bool) -> None:
    """Initialises every module with random numbers of its own, seeded by its name: so the order of modules and partitioning do not matter.

    Uses the initialisation of the transformers model that owns the module, children first, as transformers does. Unless it is to do
    `everything`, it leaves modules alone that hold trained parameters and nothing else: their values come from a checkpoint.
    """
    from transformers import PreTrainedModel

    owners: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    for name, module in reversed(list(model.named_modules())):
        owner = next(owners[prefix] for prefix in _prefixes(name) if prefix in owners)
        if not everything and _is_loaded_whole(module):
            continue
        torch.default_generator.manual_seed(stream_seed(seed, step=zlib.crc32(name.encode()), rank=0))
        with torch.no_grad(), _whole(module, partitioned=partitioned):
            owner._initialize_weights(module)


def _is_loaded_whole(module: nn.Module) -> bool:
    """Whether all that a module holds itself is trained parameters, so that a checkpoint has it."""
    own = list(module.parameters(recurse=False))
    return bool(own) and all(parameter.requires_grad for parameter in own) and next(module.buffers(recurse=False), None) is None


def _prefixes(name: str) -> Iterator[str]:
    """Yields a module's name and those of its ancestors, nearest first; the root is the empty name."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


@contextlib.contextmanager
def _whole(module: nn.Module, *, partitioned: bool) -> Iterator[None]:
    """Gathers a module's partitioned parameters for a change; rank 0's change counts.

    Its own parameters and those of its children are gathered at once; what it walks to by `named_parameters()` (GPT-2's scaled
    initialisation, say), one after the other, so that no rank ever holds the whole model.
    """
    if not partitioned:
        yield
        return
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    genuine = module.named_parameters

    def one_by_one(*args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in genuine(*args, **kwargs):
            present = cast(Any, parameter).ds_status is ZeroParamStatus.AVAILABLE
            with contextlib.nullcontext() if present else deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                yield name, parameter

    near = [parameter for part in (module, *module.children()) for parameter in part.parameters(recurse=False)]
    module.named_parameters = one_by_one  # type: ignore[method-assign]  # on this instance, for this change
    try:
        with deepspeed.zero.GatheredParameters(near, modifier_rank=0) if near else contextlib.nullcontext():
            yield
    finally:
        del module.named_parameters


def _from_pretrained(folder: Path, *, manifest: ShardManifest) -> nn.Module:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)) if folder.is_dir() else []
        if pickles:
            why, mend = "a pickle can run code when it is loaded", "convert the weights to safetensors"
            raise UnsafeFileError(f"{folder / pickles[0]} is refused", why=why, mend=mend)
        why = "a pretrained model is a local folder in Hugging Face layout"
        raise InputError(f"model.pretrained: {str(folder)!r} holds no *.safetensors", why=why)
    try:
        module: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, attn_implementation="sdpa"
        )
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        why = f"transformers refuses it, and no code of the folder is run: {' '.join(str(error).split())}"
        raise InputError(f"model.pretrained: {str(folder)!r} cannot be loaded", why=why) from error
    cast(Any, module).config.use_cache = False
    logger.info("starts from %s, %d ids of the tokenizer", folder, manifest.vocab_size)
    return module


def _from_factory(model: ModelConfig, *, manifest: ShardManifest, seed: int) -> nn.Module:
    assert model.factory is not None
    module_name, _, function_name = model.factory.partition(":")
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError((Problem("model.factory", repr(model.factory), f"cannot be imported: {error}"),)) from error
    torch.manual_seed(seed)
    module = factory(vocab_size=manifest.vocab_size, sequence_length=manifest.sequence_length)
    if not isinstance(module, nn.Module):
        raise ConfigError((Problem("model.factory", repr(model.factory), f"must return a torch.nn.Module, returned {type(module).__name__}"),))
    return module


def _checkpoint_activations(module: nn.Module) -> None:
    enable = getattr(module, "activation_checkpointing_enable", None)
    if enable is None:
        message = "needs a model with activation_checkpointing_enable(), which the factory's has not"
        raise ConfigError((Problem("training.activation_checkpointing", "True", message, nearest="False"),))
    enable(activation_checkpointing_kwargs={"use_reentrant": False})


def _config_mapping(module: nn.Module) -> Mapping[str, Any]:
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "to_json_string"):
        return {}
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    values["architectures"] = [type(module).__name__]
    return values
