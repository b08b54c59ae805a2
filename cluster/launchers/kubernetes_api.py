"""The Kubernetes API as far as a launcher speaks it: one request, one bound on time, one of two failures.

Requests go out and come back as plain JSON: the library's models cost a second of import and half of the fields of a newer cluster. What it is needed
for is the way in: kubeconfig files, their plugins, service accounts and tokens that expire.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from schemas.cluster_config import ClusterConfig
from schemas.errors import ConfigError, Problem, UnreachableError
from schemas.suggestion import nearest_choice

ANSWER_S = 20.0
"""Longest wait for an answer."""
_OWN_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DEFAULT_NAMESPACE = "default"
_MOST_CHARS = 2000
"""Of an answer that is no Kubernetes answer: a proxy's page."""


class ApiSilentError(Exception):
    """Nothing is known: no connection, no answer in time, or a server that is not well."""


class ApiRefusedError(Exception):
    """The API server answered, and said no."""

    def __init__(self, status: int, *, reason: str, message: str, details: Mapping[str, Any]) -> None:
        """Args: status: of HTTP. reason: one word. message: for people. details: as in a Status object."""
        super().__init__(f"{message or reason} ({status})")
        self.status, self.reason, self.message, self.details = status, reason, message, details


class Api:
    """A connection to one cluster, with one namespace. Its methods may be called from several threads."""

    def __init__(self, configuration: Any, *, namespace: str, answer_s: float = ANSWER_S) -> None:
        """Args: configuration: of the client library. namespace: of all objects. answer_s: longest wait for an answer."""
        from kubernetes.client.rest import RESTClientObject

        configuration.retries = False  # what is asked again, and when, is decided where it is known what for
        self._configuration, self._rest = configuration, RESTClientObject(configuration)
        self.namespace, self._answer_s = namespace, answer_s

    @property
    def server(self) -> str:
        """Returns the API server's URL."""
        return str(self._configuration.host)

    def objects(self, kind: str, name: str = "", *, group: str = "api/v1") -> str:
        """Returns the path of objects of a kind (`pods`) in the namespace, or of one of them."""
        return f"/{group}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    def call(self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None) -> Any:
        """Makes one request and returns the answer.

        Raises:
            ApiRefusedError: the server says no.
            ApiSilentError: nobody answers, or nobody who is well.
        """
        answer = self._request(method, path, query=query or {}, body=body, timeout=self._answer_s)
        try:
            data = answer.response.read()
            _check(answer.status, data)
            return json.loads(data) if data else {}
        except (ApiRefusedError, ApiSilentError):
            raise
        except Exception as error:
            raise _silence(error) from error

    def stream(self, path: str, *, query: Mapping[str, str], silent_s: float) -> Iterator[Any]:
        """Yields the events of a watch until the server ends it. `silent_s`: without a byte for so long it is given up. Raises as `call`."""
        answer = self._request("GET", path, query=query, body=None, timeout=(self._answer_s, silent_s))
        response, rest = answer.response, b""
        try:
            if answer.status != 200:
                _check(answer.status, response.read())
            for chunk in response.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (json.loads(line) for line in lines if line)
        except (ApiRefusedError, ApiSilentError):
            raise
        except Exception as error:
            raise _silence(error) from error
        finally:
            response.close()  # a stream that was left half-way is of no use to others
            response.release_conn()

    def _request(self, method: str, path: str, *, query: Mapping[str, str], body: Any, timeout: float | tuple[float, float]) -> Any:
        try:
            token = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
            headers = {"Accept": "application/json", "Content-Type": "application/json"} | ({"authorization": token} if token else {})
            url = f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
            return self._rest.request(method, url, headers=headers, body=body, _request_timeout=timeout)
        except Exception as error:
            raise _silence(error) from error


def connect(cluster: ClusterConfig) -> Api:
    """Returns the connection that a recipe names; nothing is asked yet.

    Raises:
        ConfigError: no such file, or no such context in it.
        UnreachableError: there is no way to a cluster here, or the way in fails.
    """
    from kubernetes import config
    from kubernetes.client import Configuration

    settings, configuration = cluster.kubernetes, Configuration()
    if settings.kubeconfig is None and settings.context is None and not _has_kubeconfig():
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException as error:
            mend = "set KUBECONFIG or cluster.kubernetes.kubeconfig, or run in a pod with a service account; --set cluster.kind=local runs here"
            raise UnreachableError("there is no way to a Kubernetes cluster here", why=f"no kubeconfig file, and {error}", mend=mend) from error
        own = _OWN_ACCOUNT / "namespace"
        return Api(configuration, namespace=cluster.namespace or (own.read_text().strip() if own.exists() else _DEFAULT_NAMESPACE))
    file = str(Path(settings.kubeconfig).expanduser()) if settings.kubeconfig is not None else _kubeconfig_here()
    try:
        contexts, current = config.list_kube_config_contexts(config_file=file)
    except Exception as error:
        raise ConfigError((Problem("cluster.kubernetes.kubeconfig", repr(file), f"is no kubeconfig file: {error}"),)) from error
    by_name = {context["name"]: context for context in contexts}
    if settings.context is not None and settings.context not in by_name:
        problem = Problem(
            "cluster.kubernetes.context", repr(settings.context), f"is not in {file}", nearest=nearest_choice(settings.context, by_name)
        )
        raise ConfigError((problem,))
    chosen = by_name[settings.context] if settings.context is not None else current
    try:
        config.load_kube_config(config_file=file, context=settings.context, client_configuration=configuration, persist_config=False)
    except Exception as error:
        mend = "log in to the cluster again; kubectl get pods must work"
        raise UnreachableError(f"the way to the cluster in {file} does not work", why=f"{type(error).__name__}: {error}", mend=mend) from error
    return Api(configuration, namespace=cluster.namespace or chosen.get("context", {}).get("namespace") or _DEFAULT_NAMESPACE)


def _kubeconfig_here() -> str:
    return os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())


def _has_kubeconfig() -> bool:
    return any(Path(part).exists() for part in _kubeconfig_here().split(os.pathsep) if part)


def _check(status: int, data: bytes) -> None:
    """Raises what an answer with this status means."""
    if status < 300:
        return
    try:
        told = json.loads(data)
    except ValueError:
        told = {}
    told = told if isinstance(told, dict) else {}
    message = str(told.get("message") or data[:_MOST_CHARS].decode(errors="replace").strip())
    if status >= 500 or status in (401, 429) or told.get("kind") != "Status":  # a proxy's 404 says nothing about a pod
        raise ApiSilentError(f"HTTP {status}: {message}")
    raise ApiRefusedError(status, reason=str(told.get("reason") or ""), message=message, details=told.get("details") or {})


def _silence(error: Exception) -> ApiSilentError:
    """Returns what a failed request means. Never says what was sent: there are credentials in it."""
    return ApiSilentError(f"{type(error).__name__}: {error}")
