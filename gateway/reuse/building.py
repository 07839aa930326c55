"""What the settings switch on of all this, put together."""

from __future__ import annotations

from typing import Any, Callable, Optional

from gateway.asked import Asked
from gateway.configuration import ConfigurationError
from gateway.errors import GatewayError
from gateway.inference import Answer, Call, InferenceFactory
from gateway.reuse.answerfile import AnswerFile, AnswerFileError
from gateway.reuse.batching import Gathering
from gateway.reuse.caches import Caches, NearBars
from gateway.reuse.likeness import EMBEDDINGS
from gateway.reuse.redisstore import RedisStore
from gateway.reuse.serving import Reuse
from gateway.reuse.store import AnswerStore
from gateway.reuse.stored import Stored
from gateway.reuse.together import Together
from gateway.reuse.vectors import VectorIndex, unit
from gateway.settings import Settings
from gateway.shared.state import SharedState
from gateway.steps import Steps

EMBEDDING_S = 5.0  # it is to spare time: then the question is asked as one that is like no other
EMBEDDED_CHARS_MAX = 32_768  # of a question; a longer one is like no other
Log = Callable[..., None]


def reuse_of(
    settings: Settings,
    factory: InferenceFactory,
    ask: Callable[[Asked, Call], Steps[Any]],
    caches: Optional[Caches],
    shared: Optional[SharedState] = None,
) -> Reuse:
    """The step that spares requests their calls. `shared`: what it shares with other gateways."""
    gathering = Gathering(settings.batch_max_wait_ms / 1000)
    return Reuse(
        factory.router,
        ask,
        coalesce=settings.coalesce,
        share_all=settings.cache_scope == "global",
        caches=caches,
        together=Together(gathering, ask, settings.batch_max_size),
        batch_embeddings=settings.batch_embeddings,
        region=settings.region,
        leases=None if shared is None else shared.leases,
    )


def caches_of(settings: Settings, factory: InferenceFactory, log: Log) -> Optional[Caches]:
    """The caches; None: CACHE=off. Raises ConfigurationError for what cannot be used."""
    if not settings.cache:
        return None
    near: Optional[NearBars] = None
    vectors: Optional[VectorIndex] = None
    if settings.cache_near:
        model = settings.embeddings_model
        embed = None if model is None else _embedder(factory, model, settings.workers)
        near = NearBars(settings.cache_guard, settings.cache_similarity, embed)
        vectors = None if settings.cache_guard or model is None else VectorIndex()
    try:
        file = None if settings.cache_db is None else AnswerFile(settings.cache_db, log)
    except AnswerFileError as error:
        raise ConfigurationError([f"CACHE_DB: {error}"]) from None
    store = AnswerStore(
        settings.cache_max_bytes,
        settings.cache_ttl_s,
        vectors=vectors,
        **({} if file is None else {"on_gone": file.remove}),
    )

    def heard(stored: Stored) -> None:
        store.add_vector(stored.key, stored.group, stored.vector)

    timeout_s = settings.redis_timeout_ms / 1000
    shared: Optional[RedisStore] = None
    if settings.redis_url is not None:
        try:
            on_vector = None if vectors is None else heard
            shared = RedisStore(settings.redis_url, timeout_s, settings.cache_ttl_s, log, on_vector)
        except BaseException:
            if file is not None:
                file.close(0.0)
            raise
    return Caches(
        store, near=near, file=file, shared=shared, redis_timeout_s=timeout_s, ttl_s=settings.cache_ttl_s, log=log
    )


def _embedder(factory: InferenceFactory, model: str, most: int) -> Callable[[Asked, str], Steps[Optional[bytes]]]:
    """Gives the vector of a text, by the gateway's own model; None where that cannot be had, or `most` are asked for.

    (They need no worker's place: who has one and then waits for another request's call could wait for ever.)
    """

    under_way: set[Call] = set()  # whose single operations are atomic; one more than `most` at worst

    def embed(asked: Asked, text: str) -> Steps[Optional[bytes]]:
        own = asked.call
        if own is None or not text or len(text) > EMBEDDED_CHARS_MAX or len(under_way) >= most:
            return None
        request = {"model": model, "input": text}
        # Without fallback: the vectors of two models have nothing in common.
        call = Call(EMBEDDINGS, request, request_id=asked.request_id, allow_fallback=False, priority=own.priority)
        call.caller = own.caller
        call.limit_s = EMBEDDING_S
        call.be_part_of(own)  # who leaves does not wait for it
        under_way.add(call)
        try:
            answer = yield from factory.asker.ask(call)
        except GatewayError:
            return None
        finally:
            under_way.discard(call)
            own.tell_of(call)
        return _vector_in(answer)

    return embed


def _vector_in(answer: Any) -> Optional[bytes]:
    if not isinstance(answer, Answer) or answer.parsed is None:
        return None
    try:
        return unit(answer.parsed["data"][0]["embedding"])
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
