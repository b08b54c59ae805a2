"""Continues prompts, and measures how fast the model does it."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from schemas.recipe_config import EvaluationConfig
from tasks.evaluate.report import Samples, TextSample

_PROMPT_TOKENS = 32
_TIMED_TOKENS = 32
_REPEATS = 5


def sample(
    model: Any, tokenizer: Tokenizer, *, config: EvaluationConfig, end_of_text_id: int, length: int, seed: int, device: torch.device
) -> Samples:
    """Returns the continuation of each configured prompt; the same each time, also above temperature 0.

    Args:
        model: a transformers causal model.
        length: most tokens the model can read; a longer prompt loses its beginning.
        seed: seeds every prompt's generator.
    """
    samples = []
    for number, prompt in enumerate(config.prompts):
        new_tokens = min(config.max_new_tokens, length - 1)
        ids = [end_of_text_id, *tokenizer.encode(prompt, add_special_tokens=False).ids][-(length - new_tokens) :]
        torch.manual_seed(seed + number)
        choice: dict[str, Any] = {"do_sample": True, "temperature": config.temperature, "top_k": 0} if config.temperature else {"do_sample": False}
        with torch.inference_mode():
            inputs = torch.tensor([ids], device=device)
            output = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new_tokens, **choice)
        completion = tokenizer.decode(output[0, len(ids) :].tolist(), skip_special_tokens=True)
        samples.append(TextSample(prompt=prompt, completion=completion))
    return Samples(temperature=config.temperature, samples=tuple(samples))


def latency_ms(model: Any, prompt_ids: Sequence[int], *, length: int, device: torch.device) -> tuple[float, float]:
    """Returns median milliseconds (to the first token, per further token) of one sequence.

    Args:
        model: a transformers causal model with a key-value cache.
        prompt_ids: at least one token; repeated to make a prompt of 32.
        length: most tokens the model can read.
    """
    prompt_tokens = max(1, min(_PROMPT_TOKENS, length // 2))
    ids = (list(prompt_ids) * (prompt_tokens // len(prompt_ids) + 1))[:prompt_tokens]
    prompt_BL = torch.tensor([ids], device=device)
    first, further = [], []
    with torch.inference_mode():
        for _ in range(_REPEATS):
            output, seconds = _timed(functools.partial(model, input_ids=prompt_BL, use_cache=True), device=device)
            first.append(seconds)
        for _ in range(max(1, min(_TIMED_TOKENS, length - prompt_tokens))):
            token_B1 = output.logits[:, -1:].argmax(dim=-1)
            output, seconds = _timed(
                functools.partial(model, input_ids=token_B1, past_key_values=output.past_key_values, use_cache=True), device=device
            )
            further.append(seconds)
    return statistics.median(first) * 1000, statistics.median(further) * 1000


def _timed(call: Callable[[], Any], *, device: torch.device) -> tuple[Any, float]:
    """Returns the call's result and its seconds, the device's queue included."""
    started = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - started
