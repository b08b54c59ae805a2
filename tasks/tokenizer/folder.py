"""`tokenizer_config.json`: what makes the artifact a folder that `AutoTokenizer.from_pretrained` loads, offline."""

import json
from collections.abc import Mapping
from typing import Any

_KEPT = (
    "bos_token",
    "unk_token",
    "pad_token",
    "cls_token",
    "sep_token",
    "mask_token",
    "additional_special_tokens",
    "extra_special_tokens",
    "chat_template",
    "model_max_length",
    "clean_up_tokenization_spaces",
)
"""What is kept of an existing tokenizer's configuration. Not its class nor `auto_map`: those name code."""


def tokenizer_config(existing: Mapping[str, Any], *, end_of_text: str, chat_template: str | None = None) -> bytes:
    """Returns the content of `tokenizer_config.json`.

    Args:
        existing: the configuration that came with an existing tokenizer; empty for a trained one.
        end_of_text: the token that ends a document; generation stops at it.
        chat_template: the recipe's own; None: that of `existing`, if any.
    """
    config: dict[str, Any] = {"clean_up_tokenization_spaces": False, "model_max_length": 10**30}
    config |= {key: existing[key] for key in _KEPT if existing.get(key) is not None}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end_of_text}
    config.setdefault("pad_token", end_of_text)
    if chat_template is not None:
        config["chat_template"] = chat_template
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
