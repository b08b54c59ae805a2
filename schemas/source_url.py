"""URLs in `corpus.sources`: which there are, and which are refused before anything is asked. PURE: no library is imported, no server asked."""

import re
from urllib.parse import unquote

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:::\S*)?://")
"""How a URL begins, or a chain of file systems (`simplecache::s3://…`)."""
SOURCE_KEYS = re.compile(r"corpus\.sources\.\d+(\.path)?")
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
"""What may be asked for at all; older buckets have names that new ones must not have."""
_QUERY = re.compile(r"\?[^/]*=")
_GLOB = re.compile(r"[*?\[]")
_WEB = ("http", "https")
_CHAIN = "credentials come by the standard chain (AWS_PROFILE, ~/.netrc, the machine's role)"


def is_remote(path: str) -> bool:
    """Whether a source is a URL that this machine's file system does not answer for. `file://` it does."""
    return URL.match(path) is not None and not path.startswith("file://")


def is_glob(path: str) -> bool:
    """Whether a path holds a wildcard."""
    return _GLOB.search(path) is not None


def url_problem(url: str) -> str:
    """Returns why a remote source is refused, without quoting it: it may hold a secret. Empty when it is not."""
    scheme, _, rest = url.partition("://")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if "::" in url:
        return "chains of file systems (a::b) are not followed: name the files where they lie, and unpacked"
    if at and (":" in user or scheme in _WEB):
        return f"holds credentials, which would be stored with the run: {_CHAIN}"
    if (scheme != "s3" and _QUERY.search(rest)) or (scheme in _WEB and ("?" in rest or "#" in rest)):
        return f"holds a query, which may be a signature and would be stored with the run: {_CHAIN}"
    if scheme in _WEB and (is_glob(rest) or rest.endswith("/") or "/" not in rest):
        return "is no file: web servers list nothing, so each file is a source of its own"
    if scheme == "s3" and not _BUCKET.fullmatch(rest.partition("/")[0]):
        return "must be s3://BUCKET/PREFIX; credentials and endpoint come from the environment (AWS_PROFILE, AWS_ENDPOINT_URL, …)"
    return "" if rest.strip("/") else "names nothing to read"


def holds_secret(url: str) -> bool:
    """Whether a refused URL must not be shown."""
    return "@" in url or "?" in url or "#" in url


def name_of(url: str) -> str:
    """Returns the name of a single object, as its file would be called."""
    name = url.rstrip("/").rpartition("/")[2]
    plain = unquote(name) if url.partition("://")[0] in _WEB else name
    return name if "/" in plain or "\0" in plain else plain
