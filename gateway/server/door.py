"""What the head of a request alone says: from where it comes, and what becomes of its body.

Owns nothing; waits for nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.bodies import FORMS
from gateway.dialects.forms import boundary_of
from gateway.errors import GatewayError
from gateway.labels import check_media_type
from gateway.limits.addresses import client_address
from gateway.pipeline import ASKED, Pipeline
from gateway.routing.checks import Network
from gateway.server.parsing import RequestHead
from gateway.server.routes import Routes
from gateway.settings import Settings

SMALL_BODY_BYTES = 4096  # so much of a body that nobody wants is awaited and dropped; more closes the connection


def unreadable_head() -> RequestHead:
    """What stands for the head of a request that has none that can be read."""
    head = RequestHead("-", "-", True)
    head.keep_alive = False
    return head


def has_body(head: RequestHead) -> bool:
    """Return whether a request comes with a body."""
    return head.chunked or bool(head.content_length)


def drops_body(head: RequestHead) -> bool:
    """Whether the body of a request that is refused or needs none is awaited and dropped, so that the connection goes
    on behind it. A client that waits to be told to continue may send it, or not."""
    if head.expects_continue and head.version_1_1:
        return False
    return not head.chunked and head.keep_alive and (head.content_length or 0) <= SMALL_BODY_BYTES


def body_limit_bytes(head: RequestHead, settings: Settings) -> int:
    """How large the body of a request may be."""
    return settings.max_upload_bytes if head.path in FORMS else settings.max_body_bytes


def wants_body(head: RequestHead, pipeline: Pipeline, routes: Routes) -> bool:
    """Return whether the body may be of use. (Who serves the request looks again, and tells.)"""
    if head.method != "POST" or ("POST", head.path) not in ASKED:
        return routes.is_for_known(head)
    try:
        if head.path in FORMS:
            boundary_of(head.headers.get(b"content-type", b""))
        else:
            check_media_type(head)
        pipeline.known(head).require("infer")
    except GatewayError:
        return False
    return (head.content_length or 0) <= body_limit_bytes(head, pipeline.settings) and not routes.is_foreign(head)


def address_behind(head: RequestHead, peer: str, trusted_proxies: Sequence[Network]) -> str:
    """The client's address, behind trusted proxies: the one that they name, else its peer's."""
    forwarded = head.headers.get(b"x-forwarded-for")
    text = None if forwarded is None else forwarded.decode("latin-1")
    return client_address(peer, text, trusted_proxies)
