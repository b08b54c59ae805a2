"""Ports of the loopback for a cluster."""

import contextlib
import socket

from lab.control_plane import NUM_PORTS
from lab.errors import ClusterError


def free_ports(first: int) -> int:
    """Returns the first port of a block that is free, as far as its first ones tell; below the kernel's own choice."""
    for offset in range(0, 20000, NUM_PORTS):
        port = 10000 + (first - 10000 + offset) % 20000
        if all(is_free(port + index) for index in range(12)):
            return port
    raise ClusterError("no free ports")


def is_free(port: int) -> bool:
    """Whether nobody listens at a port just now."""
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
