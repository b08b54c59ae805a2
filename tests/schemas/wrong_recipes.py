"""A recipe that is right, and a hundred edits that make it wrong, with what the problem that each causes must say."""

from typing import Any, NamedTuple

GONE = object()
"""Takes a key out of the base recipe."""

BASE: dict[str, Any] = {
    "name": "demo",
    "corpus": {"sources": [{"path": "docs"}]},
    "tokenizer": {"vocab_size": 2048},
    "tokenization": {"sequence_length": 256},
    "model": {"config": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}},
    "training": {"steps": 100, "global_batch_size": 16, "micro_batch_size": 4, "schedule": {"kind": "cosine", "warmup_steps": 10}},
    "cluster": {"kind": "local", "ranks_per_node": 2},
}


ELASTIC: dict[str, Any] = {"cluster.kind": "slurm", "cluster.nodes": 4, "cluster.min_nodes": 2, "cluster.ranks_per_node": 1}
IN_CONTAINER: dict[str, Any] = {"cluster.kind": "slurm", "cluster.container": "apptainer", "cluster.image": "/images/headrace.sif"}


CHAT: dict[str, Any] = {"path": "docs", "kind": "chat"}
TALK: dict[str, Any] = {"corpus.sources": [CHAT], "tokenizer.chat_template": "{{ messages }}"}


PREPARATION = "corpus.preparation"
GOPHER, COMPARED = f"{PREPARATION}.quality.gopher_limits", f"{PREPARATION}.decontamination"


class Wrong(NamedTuple):
    """One wrong recipe: an edit of the base, and what is expected of the problem that it causes."""

    edits: dict[str, Any]
    key: str
    value: str
    nearest: str
    says: str = ""


UNKNOWN_KEYS = (
    Wrong({"trainig": {}}, "trainig", "{}", "training"),
    Wrong({"Training": {}}, "Training", "{}", "training"),
    Wrong({"chekpoint": {"every_steps": 5}}, "chekpoint", "{'every_steps': 5}", "checkpoint"),
    Wrong({"training.lr": 0.1}, "training.lr", "0.1", "training.optimizer.learning_rate"),
    Wrong({"training.learning_rate": 0.1}, "training.learning_rate", "0.1", "training.optimizer.learning_rate"),
    Wrong({"training.global_batchsize": 8}, "training.global_batchsize", "8", "training.global_batch_size"),
    Wrong({"training.micro-batch-size": 8}, "training.micro-batch-size", "8", "training.micro_batch_size"),
    Wrong({"training.max_steps": 8}, "training.max_steps", "8", "training.steps"),
    Wrong({"training.warmup_steps": 8}, "training.warmup_steps", "8", "training.schedule.warmup_steps"),
    Wrong({"training.weight_decay": 0.1}, "training.weight_decay", "0.1", "training.optimizer.weight_decay"),
    Wrong({"training.gradient_accumulation_steps": 4}, "training.gradient_accumulation_steps", "4", "training.global_batch_size"),
    Wrong({"training.fp16": True}, "training.fp16", "True", "training.precision"),
    Wrong({"training.optimizer.lr": 0.1}, "training.optimizer.lr", "0.1", "training.optimizer.learning_rate"),
    Wrong({"training.optimizer.beta_1": 0.9}, "training.optimizer.beta_1", "0.9", "training.optimizer.beta1"),
    Wrong({"training.schedule.type": "cosine"}, "training.schedule.type", "'cosine'", ""),
    Wrong({"training.save_steps": 4}, "training.save_steps", "4", "checkpoint.every_steps"),
    Wrong({"corpus.source": ["docs"]}, "corpus.source", "['docs']", "corpus.sources"),
    Wrong({"corpus.sources": [{"path": "docs", "formatt": "text"}]}, "corpus.sources.0.formatt", "'text'", "corpus.sources.0.format"),
    Wrong({"corpus.sources": ["docs", {"path": "docs", "column": "body"}]}, "corpus.sources.1.column", "'body'", "corpus.sources.1.text_column"),
    Wrong({"corpus.rules.min_char": 4}, "corpus.rules.min_char", "4", "corpus.rules.min_chars"),
    Wrong({"corpus.splits.train": 0.9}, "corpus.splits.train", "0.9", ""),
    Wrong({"corpus.splits.valid": 0.1}, "corpus.splits.valid", "0.1", "corpus.splits.validation"),
    Wrong({"tokenizer.vocabsize": 512}, "tokenizer.vocabsize", "512", "tokenizer.vocab_size"),
    Wrong({"tokenization.seq_len": 512}, "tokenization.seq_len", "512", "tokenization.sequence_length"),
    Wrong({"model.type": "llama"}, "model.type", "'llama'", ""),
    Wrong({"cluster.gpus": 8}, "cluster.gpus", "8", "cluster.gpus_per_node"),
    Wrong({"cluster.partition": "gpu"}, "cluster.partition", "'gpu'", "cluster.queue"),
    Wrong({"cluster.stages": {"train": {"node": 2}}}, "cluster.stages.train.node", "2", "cluster.stages.train.nodes"),
    Wrong({"cluster.stages": {"tokenise": {}}}, "cluster.stages.tokenise", "'tokenise'", "cluster.stages.tokenize"),
    Wrong({"storage.path": "x"}, "storage.path", "'x'", "storage.root"),
    Wrong({"output_dir": "x"}, "output_dir", "'x'", "storage.root"),
    Wrong({"evaluation.prompt": ["x"]}, "evaluation.prompt", "['x']", "evaluation.prompts"),
    Wrong({"training.optimizer.matrix_learning_rate": 0.01}, "training.optimizer.matrix_learning_rate", "0.01", "", "no effect under adamw"),
    Wrong({"training.optimizer.name": "muon", "training.zero_stage": 3}, "training.zero_stage", "3", "2", "optimizer.name = muon needs them whole"),
    Wrong({"registration.gate.max_bpb": 1.0}, "registration.gate.max_bpb", "1.0", "registration.gate.max_bits_per_byte"),
    Wrong({"restart.max_failure": 1}, "restart.max_failure", "1", "restart.max_failures"),
    Wrong({"restart.on_bad_numbers": "rewnd"}, "restart.on_bad_numbers", "'rewnd'", "rewind"),
    Wrong({"restart.loss_spike_factor": 0.5}, "restart.loss_spike_factor", "0.5", ""),
    Wrong({"restart.on_bad_numbers": "rewind", "restart.rewind_commits": 9}, "restart.rewind_commits", "9", "3"),
    Wrong(
        {"restart.on_out_of_memory": "smaller_micro_batch", "training.micro_batch_size": 1},
        "restart.on_out_of_memory",
        "'smaller_micro_batch'",
        "stop",
        "has no effect with training.micro_batch_size = 1",
    ),
    Wrong({"restart.rewind_commits": 2}, "restart.rewind_commits", "2", "", "no effect with on_bad_numbers: stop"),
    Wrong({"tracking.mlflow": "x"}, "tracking.mlflow", "'x'", "tracking.mlflow_uri"),
    Wrong({"seed": 4}, "seed", "4", "training.seed"),
    Wrong({"zero_stage": 2}, "zero_stage", "2", "training.zero_stage"),
    Wrong({"zzzz": 1}, "zzzz", "1", "", "there are name, corpus"),
)

WRONG_CHOICES = (
    Wrong({"training.precision": "bfloat16"}, "training.precision", "'bfloat16'", "bf16"),
    Wrong({"training.precision": "fp8"}, "training.precision", "'fp8'", "fp32"),
    Wrong({"training.zero_stage": 4}, "training.zero_stage", "4", "3"),
    Wrong({"training.zero_stage": "two"}, "training.zero_stage", "'two'", ""),
    Wrong({"training.optimizer.name": "adam"}, "training.optimizer.name", "'adam'", "adamw"),
    Wrong({"training.schedule.kind": "cos"}, "training.schedule.kind", "'cos'", "cosine"),
    Wrong({"corpus.sources": [{"path": "docs", "format": "json"}]}, "corpus.sources.0.format", "'json'", "jsonl"),
    Wrong({"corpus.rules.required_columns": {"id": "int"}}, "corpus.rules.required_columns.id", "'int'", "integer"),
    Wrong({"tokenizer.pattern": "gpt-2"}, "tokenizer.pattern", "'gpt-2'", "gpt2"),
    Wrong({"tokenization.engine": "hf"}, "tokenization.engine", "'hf'", "huggingface"),
    Wrong({"tokenization.layout": "fix"}, "tokenization.layout", "'fix'", "fixed"),
    Wrong({"tokenization.packing": "best-fit"}, "tokenization.packing", "'best-fit'", "best_fit"),
    Wrong({"training.document_attention": "mask"}, "training.document_attention", "'mask'", "masked"),
    Wrong({"corpus.encoding": "gbk"}, "corpus.encoding", "'gbk'", "gb18030"),
    Wrong({"corpus.encoding": "cp936"}, "corpus.encoding", "'cp936'", "gb18030"),
    Wrong({"corpus.encoding": "windows-1252"}, "corpus.encoding", "'windows-1252'", "cp1252"),
    Wrong({"corpus.encoding": "utf-32-le"}, "corpus.encoding", "'utf-32-le'", "auto"),
    Wrong({"corpus.encoding": "ISO-8859-1"}, "corpus.encoding", "'ISO-8859-1'", "latin-1"),
    Wrong({"corpus.encoding": "us-ascii"}, "corpus.encoding", "'us-ascii'", "utf-8"),
    Wrong({"corpus.encoding": "cp437"}, "corpus.encoding", "'cp437'", ""),  # near cp1253 in nothing but its name
    Wrong({"corpus.encoding": "uft-8"}, "corpus.encoding", "'uft-8'", "utf-8"),
    Wrong({"corpus.encoding": ["gbk"]}, "corpus.encoding", "['gbk']", ""),
    Wrong({"corpus.encoding": "g\0\u4e2d"}, "corpus.encoding", "'g", ""),
    Wrong({"corpus.sources": [{"path": "docs", "encoding": "sjis"}]}, "corpus.sources.0.encoding", "'sjis'", "shift_jis"),
    Wrong({"cluster.kind": "slrum"}, "cluster.kind", "'slrum'", "slurm"),
    Wrong({"cluster.kind": "k8s"}, "cluster.kind", "'k8s'", "kubernetes"),
)

WRONG_TYPES = (
    Wrong({"training.steps": "many"}, "training.steps", "'many'", ""),
    Wrong({"training.steps": "10k"}, "training.steps", "'10k'", "10000"),
    Wrong({"training.steps": 99.5}, "training.steps", "99.5", "100"),
    Wrong({"training.steps": [100]}, "training.steps", "[100]", ""),
    Wrong({"training.seed": None}, "training.seed", "None", ""),
    Wrong({"training.optimizer.learning_rate": "fast"}, "training.optimizer.learning_rate", "'fast'", "0.0003"),
    Wrong({"training.optimizer.learning_rate": float("inf")}, "training.optimizer.learning_rate", "inf", "0.0003"),
    Wrong({"training.optimizer.weight_decay": "10%"}, "training.optimizer.weight_decay", "'10%'", "0.1"),
    Wrong({"training.deterministic": "maybe"}, "training.deterministic", "'maybe'", ""),
    Wrong({"training": 100}, "training", "100", "", "must be a mapping with the keys seed, steps"),
    Wrong({"corpus": ["docs"]}, "corpus", "['docs']", "", "must be a mapping"),
    Wrong({"corpus.sources": "docs"}, "corpus.sources", "'docs'", "[docs]"),
    Wrong({"corpus.sources": []}, "corpus.sources", "[]", "", "must not be empty"),
    Wrong({"corpus.sources": [{"path": ""}]}, "corpus.sources.0.path", "''", "", "must not be empty"),
    Wrong({"corpus.sources": [{"path": "docs", "include": "*.md"}]}, "corpus.sources.0.include", "'*.md'", "[*.md]"),
    Wrong({"corpus.sources": [5]}, "corpus.sources.0", "5", "", "must be a mapping"),
    Wrong({"name": 7}, "name", "7", '"7"'),
    Wrong({"model.config": "llama"}, "model.config", "'llama'", "", "must be a mapping"),
    Wrong({"evaluation.prompts": "Once"}, "evaluation.prompts", "'Once'", "[Once]"),
    Wrong({"deepspeed": 3}, "deepspeed", "3", "", "a mapping or the path"),
)

WRONG_VALUES = (
    Wrong({"name": "My Run"}, "name", "'My Run'", "my-run"),
    Wrong({"name": "-x-"}, "name", "'-x-'", "x"),
    Wrong({"training.steps": 0}, "training.steps", "0", "1"),
    Wrong({"training.micro_batch_size": -1}, "training.micro_batch_size", "-1", "1"),
    Wrong({"training.optimizer.learning_rate": 0}, "training.optimizer.learning_rate", "0", "0.0003"),
    Wrong({"training.optimizer.beta2": 1.0}, "training.optimizer.beta2", "1.0", "0.95"),
    Wrong({"training.seed": 2**31}, "training.seed", "2147483648", "2147483647"),
    Wrong({"training.schedule.final_fraction": 1.5}, "training.schedule.final_fraction", "1.5", "1"),
    Wrong({"corpus.splits.test": -0.1}, "corpus.splits.test", "-0.1", "0"),
    Wrong({"tokenizer.vocab_size": 100}, "tokenizer.vocab_size", "100", "258"),
    Wrong({"tokenization.sequence_length": 4}, "tokenization.sequence_length", "4", "8"),
    Wrong({"cluster.time_limit": "24:00:00"}, "cluster.time_limit", "'24:00:00'", "24h"),
    Wrong({"cluster.time_limit": "90 min"}, "cluster.time_limit", "'90 min'", "90m"),
    Wrong({"cluster.memory": "64GB"}, "cluster.memory", "'64GB'", "64G"),
    Wrong({"cluster.price_per_gpu_hour": -1}, "cluster.price_per_gpu_hour", "-1", "0"),
    Wrong({"budget": {"gpu_hours": 0}}, "budget.gpu_hours", "0", ""),
    Wrong({"budget": {"gpu_hour": 8}}, "budget.gpu_hour", "8", "budget.gpu_hours"),
    Wrong({"model.config": GONE, "model.factory": "package.module.make"}, "model.factory", "'package.module.make'", "package.module:make"),
    Wrong({"evaluation.length_buckets": [512, 256]}, "evaluation.length_buckets", "[512, 256]", "", "ascending"),
    Wrong({f"{PREPARATION}.language.keep": ["en", "english"]}, f"{PREPARATION}.language.keep.1", "'english'", "", "(ISO 639-1 codes of the"),
    Wrong({"checkpoint.every_steps": 0}, "checkpoint.every_steps", "0", "1"),
    Wrong({"checkpoint.every_steps": "automatic"}, "checkpoint.every_steps", "'automatic'", "auto"),
    Wrong({"registration.gate.max_perplexity": 1.0}, "registration.gate.max_perplexity", "1.0", "", "above 1"),
)

BROKEN_RULES = (
    Wrong({"training.global_batch_size": 18}, "training.global_batch_size", "18", "16, 20", "multiple of micro_batch_size (4)"),
    Wrong({"training.global_batch_size": 20}, "training.global_batch_size", "20", "16, 24", "ranks (2)"),
    Wrong({"training.tokens": 1000}, "training.steps", "100", "", "exactly one of steps, tokens, epochs; found steps, tokens"),
    Wrong({"training.steps": GONE}, "training.steps", "", "", "exactly one of steps, tokens, epochs; found none"),
    Wrong({"training.schedule.decay_steps": 5}, "training.schedule.decay_steps", "5", "", "no effect under cosine"),
    Wrong({"training.schedule.kind": "wsd"}, "training.schedule.decay_steps", "", "", "wsd needs decay_steps"),
    Wrong({"training.schedule.warmup_steps": 500}, "training.schedule.warmup_steps", "500", "100", "above training.steps (100)"),
    Wrong({"model.pretrained": "docs"}, "model.config", "{'model_type'", "", "exactly one of config, pretrained, factory"),
    Wrong({"model.config": GONE}, "model.config", "", "", "found none"),
    Wrong({"model.config": {"hidden_size": 8}}, "model.config", "{'hidden_size': 8}", "", "needs a model_type"),
    Wrong({"model.config.max_position_embeddings": 128}, "model.config.max_position_embeddings", "128", "256"),
    Wrong({"corpus.sources": [CHAT]}, "tokenizer.chat_template", "", "", "a tokenizer that is trained has none"),
    Wrong({**TALK, "corpus.sources": [CHAT | {"format": "text"}]}, "corpus.sources.0.format", "'text'", "jsonl", "needs a column"),
    Wrong({**TALK, "registration.gate.beat_baselines": True}, "registration.gate.beat_baselines", "True", "false", "no effect with conversations"),
    Wrong({"training.document_attention": "masked"}, "tokenization.boundaries", "", "true", "where documents start"),
    Wrong({"model.config.vocab_size": 512}, "model.config.vocab_size", "512", "", "below tokenizer.vocab_size (2048)"),
    Wrong({"corpus.rules": {"min_chars": 9, "max_chars": 8}}, "corpus.rules.min_chars", "9", "", "no document could be accepted"),
    Wrong({GOPHER: {"min_words": 9, "max_words": 8}}, f"{GOPHER}.min_words", "9", "", "min_words (9) is above max_words (8), so no document"),
    Wrong({GOPHER: {"max_words": 8}}, f"{GOPHER}.min_words", "", "", "min_words (50) is above max_words (8)"),
    Wrong({GOPHER: {"min_mean_word_length": 50}}, f"{GOPHER}.min_mean_word_length", "50", "", "(50) is above max_mean_word_length (10)"),
    Wrong({"corpus.splits": {"validation": 0.6, "test": 0.5}}, "corpus.splits.validation", "0.6", "", "nothing to train on"),
    Wrong({"corpus.sources": [{"path": "docs", "name": "a"}, {"path": "docs", "name": "a"}]}, "corpus.sources", "[{'path'", "", "twice: a"),
    Wrong({"cluster.extra_directives": ["--x"]}, "cluster.extra_directives", "['--x']", "", "kind: slurm"),
    Wrong({"cluster.kind": "slurm", "cluster.extra_directives": ["-A x"]}, "cluster.extra_directives", "['-A x']", "", "one long option"),
    Wrong({"cluster.kind": "slurm", "cluster.extra_directives": ["--a=b\n#SBATCH --x"]}, "cluster.extra_directives", "['--a=b", "", "on one line"),
    Wrong({"cluster.kind": "slurm", "cluster.extra_directives": ["--time=5"]}, "cluster.extra_directives", "['--time=5']", "", "cluster.time_limit"),
    Wrong({"cluster.kind": "slurm", "cluster.image": "x"}, "cluster.container", "", "", "image needs one of pyxis, apptainer, singularity"),
    Wrong({"cluster.kind": "slurm", "cluster.stages": {"train": {"image": "x"}}}, "cluster.container", "", "", "stages.train.image needs one of"),
    Wrong({"cluster.kind": "slurm", "cluster.container": "pyxis"}, "cluster.container", "'pyxis'", "", "no effect without image"),
    Wrong({"cluster.kind": "slurm", "cluster.mounts": ["/data"]}, "cluster.mounts", "['/data']", "", "no effect without container"),
    Wrong({**IN_CONTAINER, "cluster.container": "docker"}, "cluster.container", "'docker'", "", "pyxis"),
    Wrong({**IN_CONTAINER, "cluster.mounts": ["data"]}, "cluster.mounts.0", "'data'", "", ""),
    Wrong({**IN_CONTAINER, "cluster.mounts": ["/a,/b"]}, "cluster.mounts.0", "'/a,/b'", "", ""),
    Wrong({**IN_CONTAINER, "cluster.container_options": ["-B /a"]}, "cluster.container_options", "['-B /a']", "", "one long option"),
    Wrong({**IN_CONTAINER, "cluster.container_options": ["--bind=/a"]}, "cluster.container_options", "['--bind=/a']", "", "cluster.mounts"),
    Wrong({"cluster.kind": "kubernetes", "cluster.image": "x", "cluster.container": "pyxis"}, "cluster.container", "'pyxis'", "", "kind: slurm"),
    Wrong({"cluster.namespace": "a"}, "cluster.namespace", "'a'", "", "kind: kubernetes"),
    Wrong({**ELASTIC, "cluster.min_nodes": 5}, "cluster.min_nodes", "5", "4", "above the nodes of training (4)"),
    Wrong({**ELASTIC, "cluster.min_nodes": 3, "training.global_batch_size": 16}, "cluster.min_nodes", "3", "2", "over 4, 2, 1 nodes"),
    Wrong({**ELASTIC, "cluster.min_nodes": None, "restart.smaller_after": "5m"}, "restart.smaller_after", "'5m'", "", "without cluster.min_nodes"),
    Wrong({**ELASTIC, "cluster.min_nodes": None, "restart.grow_after": "5h"}, "restart.grow_after", "'5h'", "", "without cluster.min_nodes"),
    Wrong({**ELASTIC, "restart.smaller_after": "10 minutes"}, "restart.smaller_after", "'10 minutes'", "10m"),
    Wrong({**ELASTIC, "cluster.stages": {"tokenize": {"min_nodes": 1}}}, "cluster.stages.tokenize.min_nodes", "1", "", "only training"),
    Wrong({**ELASTIC, "cluster.stages": {"train": {"min_nodes": 9}}}, "cluster.stages.train.min_nodes", "9", "4"),
)

MISSING_AND_OUTSIDE = (
    Wrong({"name": GONE}, "name", "", "", "is required"),
    Wrong({"corpus": GONE}, "corpus", "", "", "is required"),
    Wrong({"corpus.sources": [{"name": "a"}]}, "corpus.sources.0.path", "", "", "is required"),
    Wrong({"training": GONE}, "training", "", "", "is required"),
    Wrong({"corpus.sources": ["docz"]}, "corpus.sources.0", "'{base}/docz'", "{base}/docs", "does not exist"),
    Wrong({"corpus.sources": ["x" * 300]}, "corpus.sources.0", "'{base}", "", "cannot be looked at: File name too long"),
    Wrong({"tokenizer.path": "tokeniser.json"}, "tokenizer.path", "'{base}/tokeniser.json'", "{base}/tokenizer.json", "does not exist"),
    Wrong({COMPARED: {"ngram": 13, "files": ["docs"]}}, f"{COMPARED}.files.0", "'{base}/docs'", "", "is a folder: name the files in it"),
    Wrong(
        {COMPARED: {"ngram": 13, "files": ["docs/*.jsonl"]}}, f"{COMPARED}.files.0", "'{base}/docs/*.jsonl'", "", "wildcards in corpus.sources alone"
    ),
    Wrong({"deepspeed": "dss.json"}, "deepspeed", "'{base}/dss.json'", "{base}/ds.json", "cannot be read"),
    Wrong({"deepspeed": "tokenizer.json"}, "deepspeed", "'{base}/tokenizer.json'", "", "not JSON"),
    Wrong({"storage.root": "${env:HEADRACE_NO_SUCH}/x"}, "storage.root", "'${env:HEADRACE_NO_SUCH}/x'", "", "is not set"),
    Wrong({"tracking.mlflow_uri": "${file:/no/such}"}, "tracking.mlflow_uri", "'${file:/no/such}'", "", "does not exist"),
    Wrong({"storage.root": "${enw:HOME}/x"}, "storage.root", "'${enw:HOME}/x'", "${env:HOME}", "unknown reference"),
    Wrong({"corpus.sources": ["${python:lib}"]}, "corpus.sources.0", "'${python:lib}'", "${python:stdlib}"),
    Wrong(
        {"tracking.mlflow_uri": "http://me:geheim@host:5000"}, "tracking.mlflow_uri", "", "http://me:${env:PASSWORD}@host:5000", "password in plain"
    ),
)

ALL = (*UNKNOWN_KEYS, *WRONG_CHOICES, *WRONG_TYPES, *WRONG_VALUES, *BROKEN_RULES, *MISSING_AND_OUTSIDE)
