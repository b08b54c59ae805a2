"""A pod's life on its node, in a thread of its own: prepared, run, asked to end, and taken out of the API when it was deleted."""

import logging
import shutil
import threading
import time
from collections.abc import Callable

from lab import images
from lab.api import Json
from lab.container import Container
from lab.environment import environment_of
from lab.logs import now
from lab.lookup import Lookup, NotThereError, own_field
from lab.names import write_hosts
from lab.reporter import GoneError, Reporter
from lab.slot import Slot, lost
from lab.specification import hostname_of, specification_of
from lab.status import ContainerState, phase_of
from lab.surroundings import Surroundings
from lab.volumes import Volumes

_LOG = logging.getLogger(__name__)
_RETRY_S = 1.0
_ATTENTIVE_S = 0.2
_CALM_S = 5.0
_TO_DIE_S = 20.0
_DONE = frozenset({"Succeeded", "Failed"})


class _EndError(Exception):
    """The pod has to end."""

    def __init__(self, grace_s: float, *, reason: str = "", message: str = "") -> None:
        self.grace_s, self.reason, self.message = grace_s, reason, message
        super().__init__(reason)


class PodRunner(threading.Thread):
    """Runs one pod."""

    def __init__(self, pod: Json, node: Surroundings, *, address: str, on_end: Callable[[], None]) -> None:
        """Args: pod: as the API has it. node: where it runs. address: its own. on_end: called when nothing is left of it."""
        meta = pod["metadata"]
        super().__init__(daemon=True, name=f"{meta['namespace']}/{meta['name']}")
        self._pod, self._node, self._address, self._on_end = pod, node, address, on_end
        self._wake, self._gone, self._evicted = threading.Event(), threading.Event(), ""
        self.folder = node.folder / "pods" / meta["uid"]
        self._deadline_from = time.monotonic()
        self._reporter = Reporter(node.api, pod, addresses=(address, node.address), gone=self._gone)
        self._running = self._stale_hosts = False
        self._lookup = Lookup(node.api, pod)
        group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
        self._volumes = Volumes(self.folder / "volumes", lookup=self._lookup, field=self._field, group=group)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._init = self._slots("initContainers")
        self._main = self._slots("containers")

    # ---- what others tell it -------------------------------------------------------------------------------------------

    def update(self, pod: Json) -> None:
        """Takes the pod as it is now."""
        self._pod = pod
        self._wake.set()

    def vanish(self) -> None:
        """Notes that the pod is no more."""
        self._gone.set()
        self._wake.set()

    def evict(self, message: str) -> None:
        """Ends it as a node does that is short of something."""
        self._evicted = message
        self._wake.set()

    def slot(self, name: str) -> Slot | None:
        """Returns one of its containers; None: it has no such one."""
        return next((slot for slot in (*self._main, *self._init) if slot.name == name), None)

    def renew_hosts(self) -> None:
        """Notes that names have changed."""
        self._stale_hosts = True
        self._wake.set()

    # ---- its life ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Lives."""
        try:
            self._live()
            while "deletionTimestamp" not in self._pod["metadata"]:
                self._rest(_CALM_S)
            self._reporter.delete()
        except GoneError:
            self._stop(1.0)
        except Exception:
            _LOG.exception("%s: the node's own mistake", self.name)
            raise
        finally:
            self._volumes.discard()
            shutil.rmtree(self.folder)
            self._on_end()

    def _live(self) -> None:
        status = self._pod.get("status", {})
        if status.get("phase") in _DONE:
            return
        try:
            self._pause(0)
            begun = status.get("phase") == "Running" or any(slot.log().exists() for slot in self._main)
            if begun and self._pod["spec"].get("restartPolicy") == "Never":
                for slot in self._main:
                    slot.end_as(lost(status.get("startTime", now())))
            else:
                self._begin()
                self._look_after()
            self._reporter.insist(*self._states())
        except _EndError as end:
            self._stop(end.grace_s)
            if self._running or end.reason:
                self._reporter.insist(*self._states(), reason=end.reason, message=end.message)

    def _begin(self) -> None:
        self._report()
        self._until_there(lambda: self._volumes.make(self._pod["spec"].get("volumes") or []), "FailedMount", self._main)
        write_hosts(self.folder / "hosts", self._pod, address=self._address, others=self._node.hosts(self._pod["metadata"]["namespace"]))
        (self.folder / "hostname").write_text(f"{hostname_of(self._pod)}\n")
        for slot in self._init:
            self._start(slot)
            policy = "Never" if self._pod["spec"].get("restartPolicy") == "Never" else "OnFailure"
            while (end := slot.state().exit) is None:
                self._report()
                self._pause(_ATTENTIVE_S)
                if slot.look(policy=policy, volumes_bytes=self._volumes.memory_bytes()):
                    self._start(slot)
            if end.code != 0:
                raise _EndError(0)
        for slot in self._main:
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        """Begins a life of a container, once there is all that it takes."""
        self._until_there(lambda: self._try_start(slot), "CreateContainerConfigError", [slot])
        self._running = True
        self._report()

    def _try_start(self, slot: Slot) -> None:
        image = self._image(slot)
        meta = self._pod["metadata"]
        variables = environment_of(
            slot.description,
            image=image.env,
            cluster=self._node.cluster,
            hostname=hostname_of(self._pod),
            lookup=self._lookup,
            field=self._field,
        )
        message = slot.folder / "message"
        message.touch()
        message.chmod(0o666)
        told = slot.description.get("terminationMessagePath") or "/dev/termination-log"
        names = {"/etc/hosts": self.folder / "hosts", "/etc/hostname": self.folder / "hostname", told: message}
        specification = specification_of(
            slot.description, self._pod, image=image, environment=variables, volume=self._volumes.path, files=names, folder=slot.folder
        )
        slot.begin({**specification, "shared_memory": str(self._volumes.shared_memory())}, on_end=self._wake.set)
        _LOG.info("%s/%s: %s begins", meta["namespace"], meta["name"], slot.name)

    def _image(self, slot: Slot) -> images.Image:
        """Returns the container's image; waits for it like a kubelet, first after an error, then backing off."""
        name = slot.description.get("image", "")
        while (image := images.find(self._node.images, name)) is None:
            if slot.wait("ErrImagePull", f'failed to pull image "{name}": not found'):
                self._node.tell(self._pod, "Failed", f'Failed to pull image "{name}": not found')
                self._report()
                self._pause(_RETRY_S)
            if slot.wait("ImagePullBackOff", f'Back-off pulling image "{name}"'):
                self._node.tell(self._pod, "BackOff", f'Back-off pulling image "{name}"')
            self._report()
            self._pause(_RETRY_S)
        return image

    def _until_there(self, act: Callable[[], None], reason: str, slots: list[Slot]) -> None:
        """Does something that needs others' objects, again and again until they are there; says so meanwhile."""
        while True:
            try:
                act()
            except NotThereError as error:
                waiting = "ContainerCreating" if reason == "FailedMount" else reason
                if [slot for slot in slots if slot.wait(waiting, str(error))]:
                    self._node.tell(self._pod, reason, str(error))
                self._report()
                self._pause(_RETRY_S)
            else:
                return

    def _look_after(self) -> None:
        """Returns once all containers have ended for good."""
        policy = self._pod["spec"].get("restartPolicy", "Always")
        while True:
            volumes_bytes = self._volumes.memory_bytes()
            for slot in self._main:
                if slot.look(policy=policy, volumes_bytes=volumes_bytes):
                    self._start(slot)
            if phase_of([slot.state() for slot in self._main], policy=policy) in _DONE:
                return
            if (full := self._volumes.too_full()) is not None:
                raise _EndError(0, reason="Evicted", message=f'Usage of EmptyDir volume "{full}" exceeds the limit')
            attentive = not self._reporter.knows or any(slot.is_attended for slot in self._main)
            self._report()
            self._pause(_ATTENTIVE_S if attentive else _RETRY_S)

    # ---- its end -------------------------------------------------------------------------------------------------------

    def _stop(self, grace_s: float) -> None:
        """Asks its containers to end, and kills those that did not in time."""
        deadline = time.monotonic() + grace_s
        for slot in self._main:
            hook, running = ((slot.description.get("lifecycle") or {}).get("preStop") or {}).get("exec"), slot.running
            if hook and running is not None and grace_s > 0:
                running.run(hook["command"], seconds=grace_s)
        for container in self._alive():
            container.terminate()
        while self._alive() and time.monotonic() < deadline:
            if self._gone.is_set():
                deadline = min(deadline, time.monotonic() + 1)
            self._wake.wait(0.05)
            self._wake.clear()
        last = time.monotonic() + _TO_DIE_S
        while alive := self._alive():
            for container in alive:
                container.kill()
            if time.monotonic() > last:
                raise RuntimeError(f"{self.name}: containers that cannot be killed")
            time.sleep(0.02)
        for slot in (*self._main, *self._init):
            slot.settle()

    def _alive(self) -> list[Container]:
        return [running for slot in (*self._main, *self._init) if (running := slot.running) is not None]

    # ---- its status ----------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        self._reporter.report(*self._states())

    def _states(self) -> tuple[list[ContainerState], list[ContainerState]]:
        return [slot.state() for slot in self._main], [slot.state() for slot in self._init]

    # ---- waiting -------------------------------------------------------------------------------------------------------

    def _rest(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()
        if self._gone.is_set():
            raise GoneError
        if self._stale_hosts:
            self._stale_hosts = False
            write_hosts(self.folder / "hosts", self._pod, address=self._address, others=self._node.hosts(self._pod["metadata"]["namespace"]))

    def _pause(self, seconds: float) -> None:
        """Waits, unless something happens. Raises what is to be done when the pod has to end."""
        self._rest(seconds)
        meta, spec = self._pod["metadata"], self._pod["spec"]
        if "deletionTimestamp" in meta:
            raise _EndError(float(meta.get("deletionGracePeriodSeconds") or 0))
        if self._evicted:
            raise _EndError(0, reason="Evicted", message=self._evicted)
        allowed = spec.get("activeDeadlineSeconds")
        if allowed is not None and time.monotonic() - self._deadline_from > allowed:
            grace_s = float(spec.get("terminationGracePeriodSeconds", 30))
            raise _EndError(grace_s, reason="DeadlineExceeded", message="Pod was active on the node longer than the specified deadline")

    def _slots(self, kind: str) -> list[Slot]:
        slots = []
        for description in self._pod["spec"].get(kind) or []:
            folder = self.folder / kind / description["name"]
            folder.mkdir(parents=True, exist_ok=True)
            slots.append(Slot(description, folder, address=self._address))
        return slots

    def _field(self, path: str) -> str:
        return own_field(self._pod, path, pod_address=self._address, node_address=self._node.address)
