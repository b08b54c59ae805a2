"""What every storage must do. To put another one to this proof, add a fixture to `storages.py`'s table: it supplies an empty root.

Nothing here knows which storage it has; what only some can do (a local path) is asked of the storage itself.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.storage import AlreadyExistsError, Storage
from schemas.errors import UnsafeFileError

UNSAFE_KEYS = ("", "/etc/passwd", "../outside", "a/../../b", "a//b", "a/./b", "a\\b", "a\0b", "a/")


def test_what_is_created_is_read_back(storage: Storage) -> None:
    storage.create_exclusive("train/x/epochs/000000.json", b'{"a": 1}')
    assert storage.read("train/x/epochs/000000.json") == b'{"a": 1}'
    assert storage.exists("train/x/epochs/000000.json")
    assert storage.size("train/x/epochs/000000.json") == 8


def test_an_empty_object_exists(storage: Storage) -> None:
    storage.create_exclusive("empty", b"")
    assert storage.exists("empty")
    assert (storage.read("empty"), storage.size("empty")) == (b"", 0)


def test_a_large_object_is_whole(storage: Storage) -> None:
    data = bytes(range(256)) * (40 << 10)
    storage.create_exclusive("large", data)
    assert storage.size("large") == len(data)
    assert storage.read("large") == data


def test_what_exists_is_never_replaced(storage: Storage) -> None:
    storage.create_exclusive("k", b"first")
    with pytest.raises(AlreadyExistsError):
        storage.create_exclusive("k", b"second")
    with pytest.raises(AlreadyExistsError):
        storage.create_exclusive("k", b"first")
    assert storage.read("k") == b"first"


def test_of_racing_writers_one_wins_and_its_bytes_stay(storage: Storage) -> None:
    writers, start, won = 8, threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        try:
            storage.create_exclusive("claim", f"writer {number}".encode())
        except AlreadyExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("claim") == f"writer {won[0]}".encode()


def test_readers_see_nothing_or_the_whole(storage: Storage) -> None:
    data, seen, done = b"x" * (4 << 20), [], threading.Event()

    def look() -> None:
        while not done.is_set():
            if storage.exists("big"):
                seen.append(len(storage.read("big")))

    reader = threading.Thread(target=look)
    reader.start()
    storage.create_exclusive("big", data)
    while not seen and reader.is_alive():  # one that failed sees nothing any more
        pass
    done.set()
    reader.join()
    assert set(seen) == {len(data)}


def test_what_is_missing_is_said_so(storage: Storage) -> None:
    assert not storage.exists("none")
    with pytest.raises(FileNotFoundError):
        storage.read("none")
    with pytest.raises(FileNotFoundError):
        storage.size("none")


def test_names_are_sorted_direct_and_current(storage: Storage) -> None:
    assert storage.names("folder") == ()
    for key in ("folder/b", "folder/a", "folder/sub/c", "other/d"):
        storage.create_exclusive(key, b"1")
    assert storage.names("folder") == ("a", "b", "sub")
    storage.create_exclusive("folder/0", b"1")
    assert storage.names("folder") == ("0", "a", "b", "sub")


def test_a_name_that_begins_like_another_is_another(storage: Storage) -> None:
    storage.create_exclusive("train/x-1/a", b"1")
    storage.create_exclusive("train/x-10/b", b"1")
    assert storage.names("train/x-1") == ("a",)
    storage.delete("train/x-1")
    assert storage.names("train/x-10") == ("b",)


def test_deleting_an_object_leaves_the_others(storage: Storage) -> None:
    storage.create_exclusive("f/a", b"1")
    storage.create_exclusive("f/b", b"1")
    storage.delete("f/a")
    assert (storage.exists("f/a"), storage.names("f")) == (False, ("b",))
    storage.create_exclusive("f/a", b"2")
    assert storage.read("f/a") == b"2"


def test_deleting_a_folder_takes_all_below(storage: Storage) -> None:
    for key in ("f/a", "f/sub/b", "f/sub/deeper/c", "g/d"):
        storage.create_exclusive(key, b"1")
    storage.delete("f")
    assert not any(storage.exists(key) for key in ("f/a", "f/sub/b", "f/sub/deeper/c"))
    assert storage.names("f") == ()
    assert storage.exists("g/d")


def test_several_may_delete_one_folder(storage: Storage) -> None:
    keys = [f"f/{folder}/{name}" for folder in "abcd" for name in "xyz"]
    for key in keys:
        storage.create_exclusive(key, b"1")
    with ThreadPoolExecutor(4) as deleters:
        list(deleters.map(storage.delete, ["f"] * 4))
    assert not any(storage.exists(key) for key in keys)


def test_deleting_what_is_not_there_is_nothing(storage: Storage) -> None:
    storage.delete("none")
    storage.delete("no/folder/none")


@pytest.mark.parametrize("key", UNSAFE_KEYS)
def test_keys_that_leave_the_root_are_refused(storage: Storage, key: str) -> None:
    for act in (storage.read, storage.exists, storage.size, storage.names, storage.delete):
        with pytest.raises(UnsafeFileError):
            act(key)
    with pytest.raises(UnsafeFileError):
        storage.create_exclusive(key, b"1")


def test_names_of_many_kinds_are_kept(storage: Storage) -> None:
    keys = ("with space/ä ö 中.json", "a+b=c&d/%41.json", "UPPER/lower/.hidden")
    for key in keys:
        storage.create_exclusive(key, key.encode())
    assert [storage.read(key) for key in keys] == [key.encode() for key in keys]
    assert storage.names("a+b=c&d") == ("%41.json",)


def test_a_local_path_holds_the_object(storage: Storage) -> None:
    """Only where compute can open objects in place; elsewhere they are staged, and the answer is None for every key."""
    storage.create_exclusive("f/a", b"bytes")
    path = storage.local_path("f/a")
    assert path is None or path.read_bytes() == b"bytes"


def test_the_url_opens_the_same_storage(storage: Storage) -> None:
    from cluster.storage import open_storage

    storage.create_exclusive("f/a", b"bytes")
    assert open_storage(storage.url).read("f/a") == b"bytes"
