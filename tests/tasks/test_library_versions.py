"""Versions in records: what is installed counts, then what is locked."""

from importlib import metadata
from pathlib import Path

from tasks.library_versions import UNKNOWN, library_version


def test_what_is_installed_counts(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("pydantic==0.1\n")
    assert library_version("pydantic", locks=tmp_path) == metadata.version("pydantic")


def test_what_is_not_here_is_as_it_is_locked(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("# made by hand\nnot-here==1.2.3\n")
    (tmp_path / "cpu.txt").write_text("-r base.txt\nfar-away==4.5+cpu ; python_version > '3'\n")
    assert [library_version(name, locks=tmp_path) for name in ("not-here", "far-away", "nowhere")] == ["1.2.3", "4.5", UNKNOWN]
    assert library_version("not-here", locks=tmp_path / "none") == UNKNOWN
