"""Text for benchmarks: what Debian's documentation packages hold, fetched with `apt-get download` (nothing is installed), markup taken out.

Documents are files, in the order of package and path; those with equal text are left out. What was made stays below `.headrace/benchmarks`.
"""

import gzip
import hashlib
import html
import json
import lzma
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.harness import ROOT

CACHE = ROOT / ".headrace" / "benchmarks"
PACKAGES: Mapping[str, Sequence[str]] = {
    "english": (
        "python3.11-doc",
        "openjdk-17-doc",
        "linux-doc-6.1",
        "rust-doc",
        "qtbase5-doc-html",
        "libboost1.74-doc",
        "postgresql-doc-15",
        "octave-doc",
        "perl-doc",
        "libreoffice-help-en-us",
        "debian-handbook",
    ),
    "chinese": ("libreoffice-help-zh-cn", "manpages-zh", "debian-reference-zh-cn", "libreoffice-help-zh-tw"),
}
_SUFFIXES = (".html", ".htm", ".xhtml", ".txt", ".rst", ".md", ".pod", ".sgml", ".1", ".2", ".3", ".4", ".5", ".7", ".8")
_COMPRESSION = {".gz": gzip.decompress, ".xz": lzma.decompress}
_SKIPPED = re.compile(rb"<(script|style|head|nav)\b.*?</\1>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(rb"<[^>]{0,2000}>")
_BLANKS = re.compile(rb"[ \t]*\n\s*\n\s*")
_LEAST_BYTES = 200
_HAN = re.compile("[\u4e00-\u9fff]")
_LEAST_HAN = 0.1
"""A package in Chinese also holds pages that nobody has translated."""


@dataclass(frozen=True)
class Text:
    """Documents in a file of JSON Lines, `{"text": …}`."""

    path: Path
    documents: int
    num_bytes: int
    """UTF-8 bytes of all texts."""
    packages: Mapping[str, str]
    """Debian package → version."""

    def texts(self) -> Iterator[str]:
        """Yields the documents."""
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def debian_text(language: str, *, megabytes: int) -> Text:
    """Returns about `megabytes` million bytes of text, or all that the packages hold when that is less. Made the first time, then kept."""
    path, about = CACHE / f"{language}-{megabytes}.jsonl", CACHE / f"{language}-{megabytes}.json"
    if not about.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        about.write_text(json.dumps(_write(path, language=language, limit=megabytes * 1_000_000)))
    facts = json.loads(about.read_text())
    return Text(path=path, documents=facts["documents"], num_bytes=facts["num_bytes"], packages=facts["packages"])


def _write(path: Path, *, language: str, limit: int) -> dict[str, object]:
    documents = num_bytes = 0
    versions: dict[str, str] = {}
    seen: set[bytes] = set()
    with path.open("w", encoding="utf-8") as out:
        for package in PACKAGES[language]:
            archive = _fetch(package)
            versions[package] = archive.name.split("_")[1]
            for text in _documents(archive, is_chinese=language == "chinese"):
                data = text.encode()
                digest = hashlib.blake2b(data, digest_size=16).digest()
                if digest in seen:
                    continue
                seen.add(digest)
                out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                documents, num_bytes = documents + 1, num_bytes + len(data)
                if num_bytes >= limit:
                    return {"documents": documents, "num_bytes": num_bytes, "packages": versions}
    return {"documents": documents, "num_bytes": num_bytes, "packages": versions}


def _fetch(package: str) -> Path:
    """Returns the package's archive, downloading it the first time."""
    folder = CACHE / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        subprocess.run(("apt-get", "update", "--quiet=2"), check=True)
        subprocess.run(("apt-get", "download", "--quiet=2", "-o", "APT::Sandbox::User=root", package), cwd=folder, check=True)
        found = sorted(folder.glob(f"{package}_*.deb"))
    return found[-1]


def _documents(archive: Path, *, is_chinese: bool) -> Iterator[str]:
    """Yields the texts of a package, by path."""
    contents = subprocess.Popen(("dpkg-deb", "--fsys-tarfile", str(archive)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert contents.stdout is not None
    with tarfile.open(fileobj=contents.stdout, mode="r|") as tar:
        for member in tar:
            name = Path(member.name)
            unpack = _COMPRESSION.get(name.suffix)
            if not member.isfile() or (name.with_suffix("") if unpack else name).suffix not in _SUFFIXES:
                continue
            file = tar.extractfile(member)
            assert file is not None
            text = _plain(unpack(file.read()) if unpack else file.read())
            if len(text) >= _LEAST_BYTES and (not is_chinese or len(_HAN.findall(text)) >= _LEAST_HAN * len(text)):
                yield text
    contents.stdout.close()
    contents.wait()


def _plain(data: bytes) -> str:
    """Returns a page's text without markup; bytes that are not UTF-8 are left out."""
    if data.lstrip()[:1] == b"<":
        data = _TAG.sub(b"", _SKIPPED.sub(b"", data))
        data = html.unescape(data.decode("utf-8", "ignore")).encode()
    return _BLANKS.sub(b"\n\n", data).decode("utf-8", "ignore").replace("\0", "").strip()
