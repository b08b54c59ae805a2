"""The control plane's programs: built once, from Debian's source package of Kubernetes, into a cache. Needs apt and a Debian mirror, not root.

Nothing is installed: compiler and tools are unpacked beside the sources, and go with them when the build is done. A build that was killed
is gone on with by the next one. Two builds at once: the second waits, and finds the first one's programs.
"""

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lab.control_plane import DAEMONS, ETCD
from lab.errors import ClusterError

VERSION = "1.20.2"
_SUITE = "bookworm"
"""Its source package is Debian's newest of the whole server."""
_PACKAGES = ("golang-1.19-go", "golang-1.19-src", "etcd-server", "rsync", "libpopt0", "libxxhash0", "liblz4-1", "libzstd1")
_PROGRAMS = (*DAEMONS, "kubectl")
_NEEDED_BYTES = 3 * 2**30
_MIRROR = "http://deb.debian.org/debian"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_NEEDED = ("apt-get", "dpkg-deb", "dpkg-source", "make", "patch")
_BUILD = "python3 infra/kubernetes/test_cluster.py build"

Say = Callable[[str], None]
"""Takes a line for the person who waits."""


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Returns where programs are kept: `$HEADRACE_CACHE`, else `~/.cache/headrace`."""
    return Path(environment.get("HEADRACE_CACHE") or Path.home() / ".cache/headrace").absolute()


def folder(cache: Path | None = None) -> Path:
    """Returns where the programs are, or will be."""
    return (cache or cache_folder(os.environ)) / f"kubernetes-{VERSION}-{platform.machine()}"


def ready(cache: Path | None = None) -> Path:
    """Returns the folder of the programs. Raises: ClusterError: they were not built yet."""
    place = folder(cache)
    if not place.is_dir():
        raise ClusterError(f"Kubernetes' programs are not in {place}", mend=f"{_BUILD}   (once; some five minutes)")
    return place


def build(*, say: Say, cache: Path | None = None) -> Path:
    """Builds the programs, unless they are there. Returns their folder.

    Raises:
        ClusterError: something that it takes is missing, or a step fails.
    """
    place = folder(cache)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place.with_name(f"{place.name}.lock"), say=say):
        if place.is_dir():
            return place
        work = place.with_name(f"building-{place.name}")
        _check(place.parent, begun=work.exists())
        work.mkdir(exist_ok=True)
        recipe = _Recipe(work, say)
        recipe.step("packages", recipe.packages, "1/4 the compiler and the sources from Debian, 120 MB")
        recipe.step("sources", recipe.sources, "2/4 unpacking")
        recipe.step("programs", recipe.programs, "3/4 compiling: some five minutes of two cores")
        say("4/4 into the cache")
        recipe.collect().rename(place)
        shutil.rmtree(work)
    return place


@contextmanager
def _alone(lock: Path, *, say: Say) -> Iterator[None]:
    """Keeps others out for as long as the body takes; a process that dies lets go."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is under way; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check(cache: Path, *, begun: bool) -> None:
    problems = []
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        problems.append(f"not installed: {', '.join(missing)}; on Debian: apt-get install -y --no-install-recommends apt dpkg-dev make patch")
    if not Path(_KEYS).exists():
        problems.append(f"{_KEYS} is missing: packages could not be verified; apt-get install debian-archive-keyring")
    free = shutil.disk_usage(cache).free
    if free < _NEEDED_BYTES and not begun:
        problems.append(f"{cache} has {free / 2**30:.1f} GB left, {_NEEDED_BYTES / 2**30:.0f} are needed; set HEADRACE_CACHE to a folder elsewhere")
    if problems:
        raise ClusterError("Kubernetes' programs cannot be built here:\n  " + "\n  ".join(problems))


class _Recipe:
    """The steps, in a folder of their own, with a log. A step that was done leaves a mark, and is not done again."""

    def __init__(self, work: Path, say: Say) -> None:
        self._work, self._say = work, say
        self._log = work / "build.log"
        self._tools, self._tree = work / "tools", work / "source"

    def step(self, name: str, act: Callable[[], None], title: str) -> None:
        mark = self._work / f"{name}.done"
        if mark.exists():
            return
        self._say(title)
        act()
        mark.touch()

    def packages(self) -> None:
        """Downloads from the mirror that apt uses here, with lists of our own, and unpacks the tools."""
        apt, files = self._work / "apt", self._work / "packages"
        for path in (apt / "lists/partial", apt / "cache/archives/partial", files):
            path.mkdir(parents=True, exist_ok=True)
        mirror = _mirror()
        lines = [f"{kind} [signed-by={_KEYS}] {mirror} {_SUITE} main\n" for kind in ("deb", "deb-src")]
        (apt / "sources.list").write_text("".join(lines))
        values = {
            "Dir::Etc::sourcelist": apt / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": apt / "lists",
            "Dir::Cache": apt / "cache",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": 3,
            "Debug::NoLocking": "true",
        }
        options = [word for key, value in values.items() for word in ("-o", f"{key}={value}")]
        self._run("apt-get", *options, "update", cwd=files)
        self._run("apt-get", *options, "download", *_PACKAGES, cwd=files)
        self._run("apt-get", *options, "source", "--download-only", "kubernetes", cwd=files)
        for path in sorted(files.glob("*.deb")):
            self._run("dpkg-deb", "--extract", str(path), str(self._tools), cwd=files)

    def sources(self) -> None:
        (description,) = (self._work / "packages").glob(f"kubernetes_*{VERSION}*.dsc")
        shutil.rmtree(self._tree, ignore_errors=True)
        self._run("dpkg-source", "--no-check", "--extract", str(description), str(self._tree), cwd=self._work)

    def programs(self) -> None:
        (self._work / "version").write_text(_VERSION_FILE)
        environment = {
            "PATH": f"{self._tools}/usr/lib/go-1.19/bin:{self._tools}/usr/bin:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": f"{self._tools}/usr/lib/{platform.machine()}-linux-gnu",
            "GOROOT": f"{self._tools}/usr/lib/go-1.19",
            "GOPROXY": "off",
            "CGO_ENABLED": "0",
            "HOME": str(self._work),
            "KUBE_GIT_VERSION_FILE": str(self._work / "version"),
        }
        what = " ".join(f"cmd/{name}" for name in _PROGRAMS if name != ETCD)
        self._run("nice", "-n", "19", "make", f"WHAT={what}", cwd=self._tree, environment=environment)

    def collect(self) -> Path:
        """Returns a folder with the programs alone."""
        out = self._work / "programs"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for name in _PROGRAMS:
            found = self._tools / "usr/bin/etcd" if name == ETCD else (self._tree / "_output/bin" / name).resolve()
            shutil.copy2(found, out / name)
        return out

    def _run(self, *argv: str, cwd: Path, environment: Mapping[str, str] | None = None) -> None:
        with self._log.open("ab") as log:
            code = subprocess.run(
                argv, cwd=cwd, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            ).returncode
        if code != 0:
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise ClusterError(f"{' '.join(argv)[:200]} failed ({code}):\n{end}", mend=f"see {self._log}; {_BUILD}   goes on from here")


_VERSION_FILE = f"""\
KUBE_GIT_COMMIT='{VERSION}'
KUBE_GIT_TREE_STATE='clean'
KUBE_GIT_VERSION='v{VERSION}'
KUBE_GIT_MAJOR='{VERSION.split(".")[0]}'
KUBE_GIT_MINOR='{VERSION.split(".")[1]}'
"""


def _mirror() -> str:
    """Returns the mirror that apt uses here."""
    wanted = ("Created-By: Packages", f"Codename: {_SUITE}", "Component: main")
    done = subprocess.run(("apt-get", "indextargets", "--format", "$(SITE)", *wanted), capture_output=True, text=True)
    return next(iter(done.stdout.split()), _MIRROR)
