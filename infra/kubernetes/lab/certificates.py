"""The cluster's own certificate authority, made with the program `openssl`. Keys are of elliptic curves: made in no time."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab.errors import ClusterError

_SETTINGS = """\
[req]
distinguished_name = dn
[dn]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
_DAYS = "3650"


class Certificates:
    """Keys and certificates in a folder: `NAME.key` and `NAME.crt`; the authority's name is `ca`."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: may be there already, with an authority in it."""
        self.folder = folder

    def found(self) -> None:
        """Makes the authority, and the key pair `sa.key`, `sa.pub` by which tokens of service accounts are signed. Raises: ClusterError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        (self.folder / "openssl.cnf").write_text(_SETTINGS)
        self._new_key("ca")
        self._openssl("req", "-x509", "-new", "-key", "ca.key", "-out", "ca.crt", "-subj", "/CN=test-cluster", "-extensions", "authority")
        self._new_key("sa")
        self._run("openssl", "pkey", "-in", "sa.key", "-pubout", "-out", "sa.pub")

    def issue(self, name: str, *, subject: str, addresses: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        """Makes a key and a certificate for a server and client.

        Args:
            name: of the files.
            subject: as `/O=group/CN=name`; to the API server these are a user and its groups.
            addresses: the IP addresses it answers at.
            hosts: the names it answers to.

        Raises:
            ClusterError: openssl fails.
        """
        self._new_key(name)
        names = ",".join([*(f"IP:{address}" for address in addresses), *(f"DNS:{host}" for host in hosts)])
        more = ("-addext", f"subjectAltName={names}") if names else ()
        signed = ("-x509", "-new", "-CA", "ca.crt", "-CAkey", "ca.key", "-extensions", "leaf", *more)
        self._openssl("req", *signed, "-key", f"{name}.key", "-out", f"{name}.crt", "-subj", subject)

    def path(self, file: str) -> str:
        """Returns where a file is."""
        return str(self.folder / file)

    def _new_key(self, name: str) -> None:
        self._run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{name}.key")

    def _openssl(self, *argv: str) -> None:
        self._run("openssl", *argv, "-days", _DAYS, "-config", "openssl.cnf")

    def _run(self, *argv: str) -> None:
        done = subprocess.run(argv, cwd=self.folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(argv)}: {done.stderr.strip()}")
