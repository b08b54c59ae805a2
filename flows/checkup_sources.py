"""`headrace doctor` on raw text behind URLs: whether this machine may list it. Local text is looked at when the recipe is loaded."""

from cluster.remote_files import RemoteFiles
from flows.figure import of_bytes
from flows.finding import Finding, finding
from schemas.config import RunConfig
from schemas.errors import HeadraceError
from schemas.source_url import is_remote
from tasks.validate.remote_sources import find_remote
from tasks.validate.sources import is_selected


def check_sources(config: RunConfig) -> list[Finding]:
    """Lists every remote source, and reads none."""
    findings, remote = [], RemoteFiles()
    for index, (name, source) in enumerate(zip(config.corpus.source_names, config.corpus.sources, strict=True)):
        subject = f"corpus.sources.{index}"
        if not is_remote(source.path):
            continue
        try:
            files = find_remote(source, name=name, remote=remote, is_selected=is_selected).values()
        except HeadraceError as error:
            findings.append(finding("error", subject, error.what, error.mend))
            continue
        findings.append(finding("ok", subject, f"{len(files):,} files, {of_bytes(sum(file.size for file in files))}, at {source.path}"))
        if any(not file.identity for file in files):
            what = f"{source.path}: its server says nothing that changes with the content, so every plan reads all of it"
            findings.append(finding("warning", subject, what, "copy it to a folder or a bucket, and name that"))
    return findings
