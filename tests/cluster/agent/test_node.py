"""The port at which a start's ranks meet."""

import socket

import pytest

from cluster.agent.node import held_port


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", ""])
def test_a_held_port_is_rank_0s_alone_until_it_is_given_back(address: str) -> None:
    with held_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind((address, port))  # as one that is given a free port, which Linux chooses by the same rule
        with socket.create_server((address, port)) as rank_0, socket.create_connection((address or "127.0.0.1", port)):
            rank_0.accept()[0].close()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # that connection lingers
        other.bind((address, port))
