"""Engines by Kubernetes: the EndpointSlices that a label selector finds, listed from the API server.

The token and the authorities are those of the pod's service account, read anew for each look: the kubelet renews them.
A `KubernetesAsker` belongs to the thread that asks, but for `cancel`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote, urlencode

from gateway.discovery.answers import ASK_S, Answer, DiscoveryError
from gateway.discovery.slices import found_in
from gateway.discovery.web import Getter
from gateway.routing.checks import is_header_value, is_host
from gateway.routing.found import FOUND_MAX
from gateway.routing.sources import KubernetesSource

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST, PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
PAGE = 500  # slices that are asked for at a time, as kubectl does
PAGES_MAX = 1 + 2 * FOUND_MAX // PAGE
FILE_MAX_BYTES = 1 << 20


class KubernetesAsker:
    """Lists EndpointSlices. `environ` says where the API server is (None: the process's), `account` is the folder of
    the service account (None: where pods have it)."""

    def __init__(
        self, source: KubernetesSource, environ: Optional[Mapping[str, str]] = None, account: Optional[Path] = None
    ) -> None:
        self._source = source
        self._environ = os.environ if environ is None else environ
        self._account = account or SERVICE_ACCOUNT
        self._getter: Optional[Getter] = None
        self._cancelled = False

    def ask(self) -> Answer:
        """See `Asker`."""
        getter = self._getter = self._new_getter()
        if self._cancelled:  # it is set before the getter is looked for
            getter.cancel()
        namespace = self._source.namespace or self._read("namespace")
        token = self._read("token")
        if not is_header_value(token):
            raise DiscoveryError(f"{self._account}/token holds no token")
        headers = {"Authorization": f"Bearer {token}"}
        path = f"/apis/discovery.k8s.io/v1/namespaces/{quote(namespace, safe='')}/endpointslices"
        slices: list[Any] = []
        onward = ""
        for _ in range(PAGES_MAX):
            query = {"labelSelector": self._source.selector, "limit": PAGE, **({"continue": onward} if onward else {})}
            said = getter.get(f"{path}?{urlencode(query)}", headers, ASK_S).body
            items = said.get("items") if isinstance(said, dict) else None
            if not isinstance(items, list):
                raise DiscoveryError(f"{getter.shown} has answered no list")
            slices += items
            metadata = said.get("metadata")
            onward = metadata.get("continue") or "" if isinstance(metadata, dict) else ""
            if not isinstance(onward, str) or not onward:
                return Answer(found_in(slices, self._source.port))
        raise DiscoveryError(f"{getter.shown} lists more than {PAGES_MAX * PAGE} slices")

    def cancel(self) -> None:
        """See `Asker`."""
        self._cancelled = True
        getter = self._getter
        if getter is not None:
            getter.cancel()

    def _new_getter(self) -> Getter:
        host, port = self._environ.get(HOST, ""), self._environ.get(PORT, "443")
        if not host:
            raise DiscoveryError(f"{HOST} is not set: this is no pod of Kubernetes")
        if not is_host(host) or not (port.isdecimal() and 1 <= int(port[:6]) <= 65535):
            raise DiscoveryError(f"{HOST} and {PORT} are no address")
        return Getter(host, int(port), self._tls)

    def _tls(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cadata=self._read("ca.crt"))
        except ssl.SSLError:
            raise DiscoveryError(f"{self._account}/ca.crt holds no certificate") from None

    def _read(self, name: str) -> str:
        path = self._account / name
        try:
            with path.open("rb") as file:
                text = file.read(FILE_MAX_BYTES).decode("ascii").strip()
        except (OSError, ValueError) as error:
            raise DiscoveryError(f"{path}: {getattr(error, 'strerror', None) or 'is no text'}") from None
        if not text:
            raise DiscoveryError(f"{path} is empty")
        return text
