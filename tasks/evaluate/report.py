"""What an evaluation says: the types of `report.json`, `speed.json` and `samples.json`. Pure; read by the registration gate."""

from schemas.frozen import Frozen

REPORT_NAME = "report.json"
SPEED_NAME = "speed.json"
SAMPLES_NAME = "samples.json"
PLOTS_FOLDER = "plots"


class Scores(Frozen):
    """How well the model predicts a set of documents. Every token of the text is predicted; end-of-text is context only."""

    documents: int
    """Documents."""
    text_bytes: int
    """UTF-8 bytes of their text."""
    tokens: int
    """Predicted tokens."""
    loss: float
    """Mean negative log-likelihood per token, nats."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float
    """Total nats / ln 2 / text bytes: independent of the tokenizer."""
    accuracy: float
    """Share of tokens that were the model's first guess."""


class Slice(Frozen):
    """The scores of a part of the documents."""

    name: str
    """Source, or range of document lengths."""
    scores: Scores
    """The scores."""


class CalibrationBin(Frozen):
    """Predictions whose confidence (probability of the first guess) lies in one interval."""

    lower: float
    """Lowest confidence, exclusive."""
    upper: float
    """Highest confidence, inclusive."""
    tokens: int
    """Predictions in it."""
    confidence: float
    """Their mean confidence; 0 for an empty bin."""
    accuracy: float
    """Share of them that were right; 0 for an empty bin."""


class Calibration(Frozen):
    """Whether confidence means what it says (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

    expected_error: float
    """Mean over tokens of |confidence - accuracy| of the token's bin (ECE)."""
    bins: tuple[CalibrationBin, ...]
    """Equal widths, ascending."""


class Baseline(Frozen):
    """Another way to predict or compress the same bytes."""

    name: str
    """`xz`, `gzip`, `5-gram`."""
    bits_per_byte: float
    """Bits per byte of the same test text."""
    method: str
    """How it was measured, in a sentence."""


class Report(Frozen):
    """`report.json`: everything that is the same each time the same model meets the same text."""

    schema_version: int = 1
    """Version of this type."""
    method: str
    """How documents were windowed and scored."""
    overall: Scores
    """All documents."""
    by_source: tuple[Slice, ...]
    """Per source, by name."""
    by_length: tuple[Slice, ...]
    """Per document-length bucket (bytes), ascending; empty buckets are left out."""
    calibration: Calibration
    """Calibration over all tokens."""
    baselines: tuple[Baseline, ...]
    """On the same bytes; empty when switched off."""
    parameters: int
    """Parameters of the model."""
    weight_bytes: int
    """Bytes of its weight files."""
    weight_type: str
    """Number format of its weights."""

    def baseline(self, name: str) -> Baseline | None:
        """Returns the baseline `name`, or None."""
        return next((baseline for baseline in self.baselines if baseline.name == name), None)


class Speed(Frozen):
    """`speed.json`: measured on this machine at this time; not part of the artifact's content hash."""

    schema_version: int = 1
    """Version of this type."""
    device: str
    """`cpu` or the GPU's name."""
    threads: int
    """Compute threads."""
    scoring_tokens_per_s: float
    """Predicted tokens per second in batches, no generation."""
    first_token_ms: float
    """Median milliseconds from a 32-token prompt to the first token; one sequence."""
    next_token_ms: float
    """Median milliseconds per further token; one sequence, with the key-value cache."""


class TextSample(Frozen):
    """A prompt and what the model made of it."""

    prompt: str
    """The prompt."""
    completion: str
    """The continuation, without the prompt."""


class Samples(Frozen):
    """`samples.json`."""

    schema_version: int = 1
    """Version of this type."""
    temperature: float
    """0: greedy."""
    samples: tuple[TextSample, ...]
    """One per configured prompt, in order."""
