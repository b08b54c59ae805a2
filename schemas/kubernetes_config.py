"""What a recipe says of Kubernetes beyond what it says of every cluster: `cluster.kubernetes`.

Namespace, image, queue and sizes are `cluster`'s own keys.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.frozen import Frozen, JsonObject, ReadOnly
from schemas.stage import Stage

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
OBJECT_NAME = rf"^{_LABEL}(?:\.{_LABEL})*$"
"""Names of most objects of Kubernetes: DNS subdomains."""
_QUALIFIED = rf"^(?:{_LABEL}(?:\.{_LABEL})*/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{{0,61}}[A-Za-z0-9])?$"
_LABEL_VALUE = r"^(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"
_SIZE = r"^\d+[KMGT]?$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"

Name = Annotated[str, Field(pattern=OBJECT_NAME, max_length=253)]
LabelKey = Annotated[str, Field(pattern=_QUALIFIED)]
LabelValue = Annotated[str, Field(pattern=_LABEL_VALUE)]

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)


class QueueSystem(StrEnum):
    """Who admits the pods of a job together."""

    KUEUE = "kueue"
    """Kueue: `queue` is a LocalQueue, the pods of a job are one pod group."""
    VOLCANO = "volcano"
    """Volcano: `queue` is a Queue, the pods of a job are one PodGroup, and its scheduler places them."""


class Spread(StrEnum):
    """How the pods of a job are spread over machines."""

    PREFERRED = "preferred"
    """One to a machine while there are enough."""
    REQUIRED = "required"
    """Never two on one machine."""
    NONE = "none"
    """As the scheduler likes."""


class PullPolicy(StrEnum):
    """When a machine fetches the image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class TolerationOperator(StrEnum):
    """How a toleration compares."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Frozen):
    """A taint of machines that pods do not mind."""

    key: LabelKey | None = None
    """The taint's key. `null`: any, with `operator: Exists`."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    """Whether the value must be equal, or any will do."""
    value: LabelValue | None = None
    """The taint's value, with `operator: Equal`."""
    effect: TaintEffect | None = None
    """The taint's effect. `null`: all."""
    toleration_s: int | None = Field(default=None, ge=0)
    """How long a pod stays on a machine that got the taint, with `effect: NoExecute`, seconds. `null`: for ever."""

    @model_validator(mode="after")
    def _is_one_that_kubernetes_takes(self) -> Self:
        if self.operator is TolerationOperator.EXISTS and self.value is not None:
            raise ValueError("value has no effect with operator: Exists")
        if self.operator is TolerationOperator.EQUAL and self.key is None:
            raise ValueError("key is missing: only operator: Exists goes without")
        if self.toleration_s is not None and self.effect is not TaintEffect.NO_EXECUTE:
            raise ValueError("toleration_s has no effect without effect: NoExecute")
        return self


class Volume(Frozen):
    """A folder of the pods that lies elsewhere."""

    mount: str = Field(pattern=r"^/[^:\x00-\x1f\x7f]+$")
    """Where pods see it. The folders of `storage.root` and `state` must be below one, where they are folders."""
    claim: Name | None = None
    """The PersistentVolumeClaim."""
    host_path: str | None = Field(default=None, pattern=r"^/[^:\x00-\x1f\x7f]*$")
    """Instead of a claim: a folder of the machines themselves, a parallel file system or a local disk."""
    sub_path: str | None = Field(default=None, pattern=r"^[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")
    """A folder inside of it. `null`: all of it."""
    read_only: bool = False
    """Whether pods may only read."""

    @model_validator(mode="after")
    def _lies_somewhere(self) -> Self:
        if (self.claim is None) == (self.host_path is None):
            raise ValueError("must name one of claim, host_path")
        if ".." in PurePosixPath(self.mount).parts or ".." in PurePosixPath(self.sub_path or "x").parts:
            raise ValueError("mount and sub_path must not contain ..")
        return self


class PodConfig(Frozen):
    """What pods get. Of a stage: what it sets replaces the cluster's value of the same key."""

    service_account: Name | None = None
    """ServiceAccount of the pods. `null`: the namespace's default. It needs no rights: its token is not mounted."""
    priority_class: Name | None = None
    """PriorityClass. `null`: the cluster's default."""
    node_selector: Annotated[Mapping[LabelKey, LabelValue], *ReadOnly] = Field(default_factory=dict)
    """Labels that machines must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that pods do not mind. Those of lost machines are set by Headrace."""
    same_topology: LabelKey | None = None
    """A label of machines, for example `topology.kubernetes.io/zone`: all pods of a job go where it has one value."""
    spread: Spread = Spread.PREFERRED
    """How the pods of a job are spread over machines: `preferred` one to each, `required`, or `none`."""
    shm_size: str | None = Field(default=None, pattern=_SIZE)
    """Size of `/dev/shm`, for example `16G`; it counts as memory. `null`: as much as the pod's memory allows."""
    scratch_size: str | None = Field(default=None, pattern=_SIZE)
    """What a pod may take of its machine's disk for `state`, for example `200G`: copies of object storage, checkpoints on their way there, logs.
    It goes where so much is free, and is evicted when it takes more. `null`: as much as there is."""
    gpu_resource: LabelKey = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    volumes: tuple[Volume, ...] = ()
    """Folders that pods share, or that outlive them."""
    env: Annotated[Mapping[Annotated[str, Field(pattern=_VARIABLE)], str], *ReadOnly] = Field(default_factory=dict)
    """Variables of the agents, in plain: everybody who may look at pods reads them."""
    secrets: tuple[Name, ...] = ()
    """Secrets whose entries become variables of the agents: credentials of object storage. Ranks do not get them."""
    pull_secrets: tuple[Name, ...] = ()
    """Secrets with which the image is fetched."""
    pull_policy: PullPolicy | None = None
    """`Always`, `IfNotPresent` or `Never`. `null`: Kubernetes' default."""
    run_as_user: int | None = Field(default=None, ge=1)
    """User of the processes. `null`: the image's, which must not be root."""
    run_as_group: int | None = Field(default=None, ge=1)
    """Group of the processes. `null`: the image's."""
    fs_group: int | None = Field(default=None, ge=1)
    """Group that volumes are made writable for. `null`: they stay as they are."""
    pod_patch: JsonObject = {}
    """Anything else: parts of a pod template (`metadata.labels`, `metadata.annotations`, `spec`), merged into every pod. `null` removes; of
    lists, entries are told apart by name (volume mounts by path). What Headrace goes by is refused."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        mounts = [PurePosixPath(volume.mount) for volume in self.volumes]
        doubled = next((mount for mount in mounts if mounts.count(mount) > 1), None)
        if doubled is not None:
            raise ValueError(f"volumes: {doubled} is mounted twice")
        open_secret = next((name for name in self.env if _SECRET.search(name)), None)
        if open_secret is not None:
            raise ValueError(f"env: {open_secret} looks like a credential, which everybody could read; put it into a Secret and name that in secrets")
        unknown = [key for key in self.pod_patch if key not in ("metadata", "spec")]
        if unknown:
            raise ValueError(f"pod_patch: {unknown[0]!r} is no part of a pod template; nearest: spec")
        return self


class KubernetesConfig(PodConfig):
    """Which cluster, and what its pods get. The fields of `PodConfig` are the defaults of every stage; `stages` overrides them."""

    kubeconfig: str | None = None
    """File with the way to the cluster. `null`: `KUBECONFIG`, or `~/.kube/config`; in a pod without those, the pod's own service account."""
    context: str | None = None
    """Context of that file. `null`: its current one."""
    queueing: QueueSystem | None = None
    """Who admits jobs: `kueue` or `volcano`; `cluster.queue` names the queue. `null`: Kubernetes' own scheduler, which knows no queues."""
    stages: Annotated[Mapping[Stage, PodConfig], *ReadOnly] = Field(default_factory=dict)
    """Overrides per stage."""

    def pods(self, stage: Stage) -> PodConfig:
        """Returns what the pods of `stage` get."""
        own = {name: getattr(self, name) for name in PodConfig.model_fields}
        override = self.stages.get(stage)
        if override is not None:
            own |= {name: getattr(override, name) for name in override.model_fields_set}
        return PodConfig(**own)
