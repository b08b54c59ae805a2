"""What things of an attempt are called on Kubernetes. PURE. Names are found again from the attempt's key alone, and never collide by being cut."""

import hashlib
import re

KEY = "headrace/key"
"""Annotation with the attempt's key, in full: what tells ours from a stranger's of the same name."""
JOB = "headrace/job"
"""Label with the name that all objects of an attempt begin with."""
RUN, STAGE, ATTEMPT, NODE_RANK = "headrace/run", "headrace/stage", "headrace/attempt", "headrace/node-rank"
"""Labels for people: `kubectl get pods -l headrace/run=…`."""
NUM_NODES = "headrace/num-nodes"
"""Annotation of a pod: how many of them its job has."""
MANAGED_BY = "app.kubernetes.io/managed-by"
"""Label of all that Headrace makes."""
MANAGER = "headrace"

_DIGEST_CHARS = 10
_MOST_CHARS = 63
_MOST_READABLE = _MOST_CHARS - 1 - _DIGEST_CHARS - len("-00000")
"""A pod's name is its host name, too, which may have 63 characters."""


def job_name(key: str) -> str:
    """Returns the name of an attempt's Service, and the beginning of its pods' names: a DNS label that begins with a letter, as Services want."""
    readable = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
    readable = readable if readable[:1].isalpha() else f"h-{readable}".rstrip("-")
    digest = hashlib.sha256(key.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{readable[:_MOST_READABLE].rstrip('-')}-{digest}"


def pod_name(key: str, node_rank: int) -> str:
    """Returns the name of the pod that is one node of an attempt."""
    return f"{job_name(key)}-{node_rank}"


def label_value(text: str) -> str:
    """Returns `text` as a label can have it: cut where it is too long, foreign characters replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:_MOST_CHARS].strip("-_.")
