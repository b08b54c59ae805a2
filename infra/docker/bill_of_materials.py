"""What is in an image, as CycloneDX: Debian's packages, the interpreter, and every Python distribution with its licence.

All is read from the image's files, where package managers leave it; nothing is run, installed or asked of a network.
"""

import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

_VENV = "opt/venv"
_PYTHON_FOLDERS = (f"{_VENV}/lib/python3.*/site-packages", "usr/local/lib/python3.*/site-packages", "usr/local/lib/python3.*/dist-packages")
"""The last two: of a BASE whose Python, or torch, is not Debian's."""
_LONGEST_NAME = 80
"""Characters; what is longer in the field `License` is a licence's text."""


def bill_of_materials(root: Path, *, name: str, identity: str, labels: dict[str, str]) -> str:
    """Returns the document.

    Args:
        root: folder of the image's files.
        name: of the image.
        identity: digest of its configuration, `sha256:…`. The same image has the same document, but for the time.
        labels: of the image; they are told as its properties.
    """
    image = Component(
        name=name,
        version=identity,
        type=ComponentType.CONTAINER,
        bom_ref=name,
        properties=[Property(name=key, value=value) for key, value in sorted(labels.items())],
    )
    components = [*_debian(root), *_interpreter(root), *_python(root)]
    bom = Bom(metadata=BomMetaData(component=image), components=components, serial_number=uuid.uuid5(uuid.NAMESPACE_URL, identity))
    bom.register_dependency(image, components)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def _debian(root: Path) -> Iterator[Component]:
    release = _fields((root / "etc/os-release").read_text().splitlines(), separator="=")
    family, distro = release["ID"].strip('"'), f"{release['ID']}-{release.get('VERSION_ID', 'unstable')}".replace('"', "")
    for paragraph in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = _fields(paragraph.splitlines(), separator=": ")
        if fields.get("Status") == "install ok installed":
            qualifiers = {"arch": fields["Architecture"], "distro": distro}
            url = PackageURL("deb", family, fields["Package"], fields["Version"], qualifiers)
            yield Component(name=fields["Package"], version=fields["Version"], purl=url, bom_ref=url.to_string())


def _interpreter(root: Path) -> Iterator[Component]:
    version = _fields((root / _VENV / "pyvenv.cfg").read_text().splitlines(), separator=" = ")["version"]
    url = PackageURL("generic", None, "python", version)
    yield Component(name="python", version=version, type=ComponentType.PLATFORM, purl=url, bom_ref=url.to_string())


def _python(root: Path) -> Iterator[Component]:
    folders = [str(folder) for pattern in _PYTHON_FOLDERS for folder in root.glob(pattern)]
    seen: set[str] = set()
    for found in distributions(path=folders):
        url = PackageURL("pypi", None, found.name, found.version)
        if url.to_string() not in seen:
            seen.add(url.to_string())
            licences = [LicenseFactory().make_from_string(text) for text in _licence(found)]
            yield Component(name=found.name, version=found.version, purl=url, bom_ref=url.to_string(), licenses=licences)


def _licence(found: Distribution) -> list[str]:
    """Returns what a distribution says its licence is: the expression, else the field's name, else what it is classified as; at most one."""
    said = found.metadata
    texts = [said.get("License-Expression"), said.get("License")]
    texts += [text.rpartition(" :: ")[2] for text in said.get_all("Classifier") or () if text.startswith("License :: ")]
    return [text for text in texts if text and "\n" not in text and len(text) <= _LONGEST_NAME][:1]


def _fields(lines: list[str], *, separator: str) -> dict[str, str]:
    pairs = (line.partition(separator) for line in lines if not line.startswith((" ", "#")))
    return {key: value for key, found, value in pairs if found}
