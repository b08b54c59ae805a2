"""Which file system a folder lies on, from the text of /proc/mounts."""

from pathlib import Path

import pytest

from cluster.file_system import file_system_of, mounts_here

MOUNTS = """
overlay / overlay rw 0 0
/dev/sda1 /data ext4 rw 0 0
server:/home /data/home nfs4 rw 0 0
tmpfs /data/with\\040space tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"), [("/x", "overlay"), ("/data/x", "ext4"), ("/data/home/me", "nfs4"), ("/data/homer", "ext4"), ("/data/with space", "tmpfs")]
)
def test_the_file_system_of_a_folder(folder: str, kind: str) -> None:
    assert file_system_of(Path(folder), mounts=MOUNTS) == kind


def test_this_machine_has_a_root() -> None:
    assert file_system_of(Path("/"), mounts=mounts_here()) != "unknown"
