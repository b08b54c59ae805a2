"""Where rank 0 listens for the others."""

import socket

import pytest

from tasks.train import gang


@pytest.mark.parametrize(("name", "leads_to"), [("127.0.0.1", "127.0.0.1"), ("node1", "127.64.0.101")])
def test_rank_0_listens_where_the_others_look_and_nowhere_else(name: str, leads_to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda _: leads_to)
    descriptor = gang._listen(name, 0)
    assert descriptor is not None
    with socket.socket(fileno=descriptor) as listener:
        assert listener.getsockname()[0] == leads_to


def test_a_node_whose_name_leads_only_itself_to_itself_listens_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian writes 127.0.1.1 beside the machine's name; other nodes know it by an address of the network."""
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "127.0.1.1")
    assert gang._listen("node1", 0) is None
