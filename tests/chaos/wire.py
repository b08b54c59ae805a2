"""Two or more "nodes" of this machine, each in a network namespace of its own, joined by a wire that a test can cut, delay and make lossy.

Every namespace has one TUN device; its packets come to the test's process, which hands them on, or not. Nothing of the machine's own network
is touched, and nothing but /dev/net/tun is needed: root, or a kernel that lets users make user namespaces.

    python -m tests.chaos.wire SOCKET ADDRESS PROGRAM …     runs a program on a node
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from cluster.launchers.local import LocalLauncher
from cluster.launchers.protocol import Command, Submission
from schemas.cluster_config import ClusterConfig
from schemas.job import JobSpec

DEVICE = "node0"
_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000
"""CLONE_NEWNET and CLONE_NEWUSER of linux/sched.h."""
_TUNSETIFF, _IFF_TUN_NO_PI = 0x400454CA, 0x1001
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
_UP_AND_RUNNING = 0x41
_PACKET_BYTES = 65536


@dataclass
class Condition:
    """What the wire does to packets. Both directions alike."""

    delay_s: float = 0.0
    """Added to every packet."""
    loss: float = 0.0
    """Share of packets that get lost."""
    is_cut: bool = False
    """Nothing passes."""


class Wire:
    """Hands packets from node to node. Use as a context manager; set `condition` at any time."""

    def __init__(self, *, seed: int) -> None:
        """Args: seed: decides which packets get lost."""
        self.condition = Condition()
        self.num_lost = 0
        """Packets that were dropped."""
        self._random = random.Random(seed)
        self._folder = tempfile.TemporaryDirectory(prefix="wire-")  # a short path: Unix sockets allow 107 bytes
        self.address = f"{self._folder.name}/socket"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.address)
        self._listener.listen()
        self._devices: dict[bytes, int] = {}
        self._waiting: list[tuple[float, int, bytes]] = []
        self._order = itertools.count()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)

    def __enter__(self) -> "Wire":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join()
        for device in self._devices.values():
            os.close(device)
        self._listener.close()
        self._folder.cleanup()

    def _run(self) -> None:
        while not self._ending.is_set():
            pause_s = min(0.05, max(0.0, self._waiting[0][0] - time.monotonic())) if self._waiting else 0.05
            ready, _, _ = select.select([self._listener, *self._devices.values()], [], [], pause_s)
            if self._listener in ready:
                self._welcome()
            for node, device in list(self._devices.items()):
                if device in ready:
                    self._take(node, device)
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                self._deliver(heapq.heappop(self._waiting)[2])

    def _welcome(self) -> None:
        """Takes the device of a node; a node that starts again brings a new one."""
        connection, _ = self._listener.accept()
        with connection:
            node, descriptors, _, _ = socket.recv_fds(connection, 64, 1)
        if node in self._devices:
            os.close(self._devices[node])
        self._devices[node] = descriptors[0]

    def _take(self, node: bytes, device: int) -> None:
        try:
            packet = os.read(device, _PACKET_BYTES)
        except OSError:  # its namespace ended with its last process
            os.close(self._devices.pop(node))
            return
        now = self.condition
        if now.is_cut or self._random.random() < now.loss:
            self.num_lost += 1
        else:
            heapq.heappush(self._waiting, (time.monotonic() + now.delay_s, next(self._order), packet))

    def _deliver(self, packet: bytes) -> None:
        device = self._devices.get(packet[16:20])  # destination of an IPv4 packet
        if device is not None:
            with contextlib.suppress(OSError):  # its namespace has just ended
                os.write(device, packet)


class WiredLauncher(LocalLauncher):
    """Starts the agent of each node in a namespace of its own."""

    def __init__(self, wire: Wire) -> None:
        """Args: wire: joins the nodes."""
        super().__init__(ClusterConfig())
        self._wire = wire

    def render(self, spec: JobSpec) -> Submission:
        """Returns the local commands, each on its node."""
        plain = super().render(spec)
        return replace(plain, commands=tuple(self._on_node(command, rank) for rank, command in enumerate(plain.commands)))

    def _on_node(self, command: Command, node_rank: int) -> Command:
        address, argv = f"10.77.0.{node_rank + 1}", list(command.argv)
        argv[argv.index("--advertise") + 1] = address
        wrapped = (sys.executable, "-m", "tests.chaos.wire", self._wire.address, address, *argv)
        return Command(argv=wrapped, env={**command.env, "GLOO_SOCKET_IFNAME": DEVICE}, cwd=command.cwd)


def enter_node(wire: str, address: str) -> None:
    """Moves this process into a network of its own that is joined by the wire."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(wire)
        _unshare()
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
                fcntl.ioctl(control, request, struct.pack("16sHH4s16x", DEVICE.encode(), socket.AF_INET, 0, socket.inet_aton(value)))
            for name in ("lo", DEVICE):
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), _UP_AND_RUNNING))
        socket.send_fds(connection, [socket.inet_aton(address)], [device])
        os.close(device)


def _unshare() -> None:
    """Leaves the machine's network; who is not root first becomes one's own root, for as long as this program runs."""
    uid, gid = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK | (_NEW_USER if uid else 0)) != 0:
        raise OSError(ctypes.get_errno(), "unshare: a network of its own is refused")
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


if __name__ == "__main__":
    enter_node(sys.argv[1], sys.argv[2])
    os.execvp(sys.argv[3], sys.argv[3:])
