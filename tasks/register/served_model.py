"""The registered model as MLflow serves it: this very file is stored with the model ("models from code") and run where it is served.

So it imports nothing of Headrace, and is never imported by it. It holds no state: the weights are the safetensors folder
beside it, `artifacts["hf"]`. torch and transformers are imported when the model is loaded, not when it is logged.
"""

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class ServedModel(PythonModel):  # type: ignore[misc]  # mlflow is not checked
    """Continues texts."""

    def load_context(self, context: Any) -> None:
        """Loads the weights and the tokenizer. Nothing is downloaded, no code of the folder is run."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = context.artifacts["hf"]
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        options = {"local_files_only": True, "use_safetensors": True, "dtype": "auto"}
        self._model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options).eval()

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:  # noqa: ARG002  # MLflow's own signature
        """Returns the continuation of each text, without the text itself.

        Args:
            context: MLflow's own.
            model_input: texts to continue; an empty one starts a new document.
            params: `max_new_tokens`, and `temperature` (0: greedy).
        """
        import torch

        options = params or {}
        temperature = float(options.get("temperature", 0.0))
        choice: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        longest = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30
        new_tokens = min(int(options.get("max_new_tokens", 64)), longest - 1)
        completions = []
        for text in model_input:
            # a document begins after one end-of-text token, as it did in training
            ids = [self._tokenizer.eos_token_id, *self._tokenizer.encode(text, add_special_tokens=False)][-(longest - new_tokens) :]
            inputs = torch.tensor([ids])
            with torch.inference_mode():
                output = self._model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new_tokens, **choice)
            completions.append(self._tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
        return completions


set_model(ServedModel())
