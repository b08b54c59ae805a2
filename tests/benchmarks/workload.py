"""What recovery and goodput are measured on: two ranks of DeepSpeed ZeRO 2 that train a Llama of 7 M parameters, with its state on disk."""

from typing import Any

from schemas.config import RunConfig
from tests.chaos.live_training import tiny_config

PACKAGES = ("headrace", "torch", "deepspeed", "transformers")
RANKS = 2
_MANY = 10_000


def workload(*, steps: int, every_steps: int) -> RunConfig:
    """Returns the recipe. About a tenth of a second a step on two cores; 82 MB a checkpoint. No budget ends it."""
    model: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    return tiny_config(
        model__config=model,
        tokenizer__vocab_size=8192,
        tokenization__sequence_length=64,
        training__steps=steps,
        training__global_batch_size=RANKS,
        training__micro_batch_size=1,
        training__optimizer={"learning_rate": 0.001},
        checkpoint__every_steps=every_steps,
        restart__max_interruptions=_MANY,
        restart__max_attempts_without_progress=_MANY,
        tracking__validate_every_steps=_MANY,
        tracking__validation_sequences=1,
    )
