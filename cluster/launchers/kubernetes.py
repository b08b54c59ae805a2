"""Jobs of a Kubernetes cluster: one pod per node, owned by a headless Service, all found by the attempt's key."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from cluster.launchers.kubernetes_api import Api, ApiRefusedError, ApiSilentError, connect
from cluster.launchers.kubernetes_manifest import Manifest, manifests, owned
from cluster.launchers.kubernetes_name import JOB, KEY, job_name
from cluster.launchers.kubernetes_pod import Pod, report_of
from cluster.launchers.kubernetes_refusal import refusal
from cluster.launchers.kubernetes_request import request_problems
from cluster.launchers.kubernetes_watch import PodWatch
from cluster.launchers.protocol import Handle, JobReport, JobState, NoRoomError, Submission
from schemas.cluster_config import ClusterConfig
from schemas.errors import ConfigError, Problem, UnreachableError
from schemas.job import JobSpec

logger = logging.getLogger(__name__)

_KINDS: Mapping[str, tuple[str, str]] = {
    "Service": ("api/v1", "services"),
    "Pod": ("api/v1", "pods"),
    "PodGroup": ("apis/scheduling.volcano.sh/v1beta1", "podgroups"),
}
"""Kind → API group and resource."""
_ABSENT = 404


class _PlainDumper(yaml.SafeDumper):
    """Writes out what occurs twice: a reference within a manifest is hard to read."""

    def ignore_aliases(self, _data: Any) -> bool:
        """See the class."""
        return True


class KubernetesLauncher:
    """Creates pods, and asks and cancels by the attempt's key. Remembers only what it has seen vanish: Kubernetes does not."""

    kind = "kubernetes"

    def __init__(self, cluster: ClusterConfig, *, api: Api | None = None) -> None:
        """Args: cluster: what the recipe says of it. api: the connection; None: made as the recipe says, when it is first needed."""
        self._cluster, self._connected = cluster, api
        self._watch = PodWatch(self._reach)
        self._released: set[str] = set()

    def render(self, spec: JobSpec) -> Submission:
        """See `Launcher.render`: manifests. Raises ConfigError for what no cluster would take."""
        problems = request_problems(spec, self._cluster)
        if problems:
            raise ConfigError(tuple(problems), source="pods of this recipe")
        text = yaml.dump_all(manifests(spec, self._cluster), Dumper=_PlainDumper, sort_keys=False, width=150)
        return Submission(key=spec.key, text=text, commands=())

    def submit(self, submission: Submission) -> Handle:
        """See `Launcher.submit`. What is there already, of an earlier try, is taken over; what is missing is added.

        A job that does not get all of its pods gives back those that it got: two that each hold a half would wait for each other.
        """
        key, (service, *rest) = submission.key, list(yaml.safe_load_all(submission.text))
        pods = [manifest for manifest in rest if manifest["kind"] == "Pod"]
        try:
            if self._find(pods[-1], key=key) is not None:  # the first node's pod comes last: all of it is there, or was
                return Handle(key=key, job_id=job_name(key))
            owner = self._create_owner(service, key=key)
            for manifest in rest:
                self._create(owned(manifest, owner=owner), key=key)
        except ApiRefusedError as error:
            self.cancel(key)
            raise refusal(error, key=key, num_pods=len(pods), cluster=self._cluster, namespaces=self._namespaces) from error
        except ApiSilentError as error:
            mend = "headrace resume submits it again, or adopts it if Kubernetes took it after all"
            raise UnreachableError(f"Kubernetes did not take job {key}", why=str(error), mend=mend) from error
        finally:
            self._watch.forget(key)
        return Handle(key=key, job_id=job_name(key))

    def query(self, keys: Sequence[str]) -> Mapping[str, JobReport]:
        """See `Launcher.query`."""
        by_key = self._watch.pods()
        if by_key is None:
            return dict.fromkeys(keys, JobReport(JobState.UNKNOWN))
        return {key: _named(report_of(by_key.get(key, ())), key) for key in keys}

    def cancel(self, key: str) -> None:
        """See `Launcher.cancel`: pods get SIGTERM and end by themselves; the Service goes when the last one is gone."""
        self._remove(key)
        self._watch.expire()

    def release(self, key: str) -> None:
        """See `Launcher.release`. Pods of machines that are silent are not waited for: whatever still runs there has lost its claim to the work.

        A machine may fall silent, as far as Kubernetes knows, only after its job was given up: those before are looked at again.
        """
        self._remove(key)
        self._released.add(key)
        self._watch.expire()
        by_key: Mapping[str, Sequence[Pod]] = self._watch.pods() or {}
        for pod in (pod for released in self._released for pod in by_key.get(released, ()) if pod.silent):
            self._delete("pods", pod.name, options={"gracePeriodSeconds": 0})

    def close(self) -> None:
        """Ends watching."""
        self._watch.close()

    # ---- creating ----------------------------------------------------------------------------------------------------

    def _reach(self) -> Api:
        """Returns the connection. Raises ApiSilentError where there is none to be had."""
        if self._connected is None:
            try:
                self._connected = connect(self._cluster)
            except (ConfigError, UnreachableError) as error:
                raise ApiSilentError(str(error)) from error
        return self._connected

    def _create_owner(self, service: Manifest, *, key: str) -> Manifest:
        """Returns the Service, created or found."""
        found = self._create(service, key=key)
        if found["metadata"].get("deletionTimestamp"):
            raise _still_there(found)
        return found

    def _create(self, manifest: Manifest, *, key: str) -> Manifest:
        """Returns an object, created or found. Whatever a refusal says, it may be there: quotas are asked before names."""
        api, (group, plural) = self._reach(), _KINDS[manifest["kind"]]
        try:
            created: Manifest = api.call("POST", api.objects(plural, group=group), query={"fieldValidation": "Strict"}, body=manifest)
            return created
        except ApiRefusedError:
            found = self._find(manifest, key=key)
            if found is None:
                raise
        owners = {owner["uid"] for owner in manifest["metadata"].get("ownerReferences", ())}
        if owners != {owner["uid"] for owner in found["metadata"].get("ownerReferences", ())}:
            raise _still_there(manifest)
        return found

    def _find(self, manifest: Manifest, *, key: str) -> Manifest | None:
        """Returns the object of that name, if there is one. Raises ConfigError when it is a stranger's."""
        api, (group, plural), name = self._reach(), _KINDS[manifest["kind"]], manifest["metadata"]["name"]
        try:
            found: Manifest = api.call("GET", api.objects(plural, name, group=group))
        except ApiRefusedError as error:
            if error.status == _ABSENT:
                return None
            raise
        if (found["metadata"].get("annotations") or {}).get(KEY) != key:
            message = f"{manifest['kind']} {name} is there already, and not of this job: remove it, or use another namespace"
            raise ConfigError((Problem("cluster.namespace", repr(api.namespace), message),), source="Kubernetes")
        return found

    def _namespaces(self) -> tuple[str, ...]:
        """Returns the namespaces there are, as far as this user may know."""
        try:
            return tuple(each["metadata"]["name"] for each in self._reach().call("GET", "/api/v1/namespaces")["items"])
        except (ApiRefusedError, ApiSilentError):
            return ()

    # ---- removing ----------------------------------------------------------------------------------------------------

    def _remove(self, key: str) -> None:
        """Deletes an attempt's pods, and the Service as soon as they are gone: who dies in between has asked for all of it."""
        try:
            api = self._reach()
            service = api.call("GET", api.objects("services", job_name(key)))
            if (service["metadata"].get("annotations") or {}).get(KEY) != key:
                return
            api.call("DELETE", api.objects("pods"), query={"labelSelector": f"{JOB}={job_name(key)}"}, body=_options({}))
        except ApiRefusedError as error:
            if error.status != _ABSENT:
                logger.warning("job %s cannot be removed: %s", key, error)
            return
        except ApiSilentError as error:  # its agents hear of a cancellation from storage, and the supervisor asks again
            logger.warning("job %s cannot be removed now: %s", key, error)
            return
        self._delete("services", job_name(key), options={"propagationPolicy": "Foreground"})

    def _delete(self, plural: str, name: str, *, options: Mapping[str, Any]) -> None:
        try:
            api = self._reach()
            api.call("DELETE", api.objects(plural, name), body=_options(options))
        except (ApiRefusedError, ApiSilentError) as error:
            if not isinstance(error, ApiRefusedError) or error.status != _ABSENT:
                logger.warning("%s %s cannot be removed: %s", plural, name, error)


def _still_there(manifest: Manifest) -> NoRoomError:
    what = f"{manifest['kind']} {manifest['metadata']['name']}"
    return NoRoomError(f"{what} of an earlier submission is still being removed", mend=f"wait; kubectl describe {what.lower().replace(' ', '/')}")


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "DeleteOptions", **options}


def _named(report: JobReport, key: str) -> JobReport:
    """Returns a report with what Kubernetes calls the job, where it knows one."""
    if report.state is JobState.ABSENT:
        return report
    return JobReport(**{**vars(report), "job_id": job_name(key)})
