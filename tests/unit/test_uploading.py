"""How long a client may take for a form: what is waited for it in all is bounded, what is waited for its engine is not
its doing. With a fake socket, and a clock that the test sets."""

from __future__ import annotations

import unittest
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from gateway.errors import HttpError
from gateway.server import uploading
from gateway.server.uploading import AT_LEAST_BYTES, IN_ALL, Uploading
from gateway.uploads import FULL_BYTES, Upload
from tests.support import load_settings

CLIENT_TIMEOUT_S = 30.0
LOOK_S = 0.25
MANY_BYTES = 1 << 30


class Client:
    """A client's socket: it has what the test gives it."""

    def __init__(self) -> None:
        self.has = b""

    def setblocking(self, flag: bool) -> None: ...

    def fileno(self) -> int:
        return 7

    def recv(self, size: int) -> bytes:
        if not self.has:
            raise BlockingIOError
        data, self.has = self.has[:size], self.has[size:]
        return data


class UploadingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 1000.0
        fake = mock.patch.object(uploading, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        fake.start()
        self.addCleanup(fake.stop)
        context = SimpleNamespace(settings=load_settings({"CLIENT_TIMEOUT": CLIENT_TIMEOUT_S}), pipeline=None)
        self.client = Client()
        server = SimpleNamespace(context=context, loop=mock.Mock())
        self.connection = Uploading(cast(Any, self.client), ("192.0.2.1", 1), cast(Any, server))
        self.begin()

    def begin(self) -> None:
        """A form of which nothing has come."""
        head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % MANY_BYTES
        self.connection._reader.feed(head)
        self.connection._reader.begin_upload()
        self.connection._begin_upload(cast(Any, SimpleNamespace()))

    @property
    def upload(self) -> Upload:
        assert self.connection._upload is not None
        return self.connection._upload

    def pass_time(self, seconds: float, sends_bytes: int, each_s: float, is_taken: bool = True) -> None:
        """The client sends so much each time, and the engine takes it, or nothing; looked after all the while."""
        upload, until_s, next_s = self.upload, self.now_s + seconds, self.now_s
        while self.now_s < until_s and self.connection._upload is upload:
            if self.now_s >= next_s:
                next_s += each_s
                self.client.has = b"x" * sends_bytes
            while self.client.has and not upload.full:
                self.connection._take_body(upload)
                if is_taken:
                    self.take(upload)
            self.now_s += LOOK_S
            self.connection._look_after_upload(upload, self.now_s)

    def take(self, upload: Upload) -> None:
        """As the engine does, of what is there."""
        for _ in upload.take():
            break

    def assert_late(self, upload: Upload) -> None:
        self.assertIsNone(self.connection._upload)
        with self.assertRaises(HttpError) as caught:
            self.take(upload)
        self.assertEqual(caught.exception.code, "request_timeout")

    def test_just_enough_at_a_time_may_not_go_on_without_end(self) -> None:
        upload, each_s = self.upload, CLIENT_TIMEOUT_S / 2
        allowed_s = IN_ALL * CLIENT_TIMEOUT_S
        self.pass_time(allowed_s - each_s, AT_LEAST_BYTES, each_s)
        self.assertIs(self.connection._upload, upload)
        self.pass_time(2 * each_s, AT_LEAST_BYTES, each_s)
        self.assert_late(upload)

    def test_time_in_which_the_engine_takes_nothing_is_not_the_client_s(self) -> None:
        upload = self.upload
        self.pass_time(10 * IN_ALL * CLIENT_TIMEOUT_S, FULL_BYTES, 1e9, is_taken=False)
        self.assertIs(self.connection._upload, upload)
        self.take(upload)
        self.pass_time(CLIENT_TIMEOUT_S / 2, 0, 1e9)
        self.assertIs(self.connection._upload, upload)
        self.pass_time(CLIENT_TIMEOUT_S, 0, 1e9)
        self.assert_late(upload)

    def test_an_engine_that_stands_still_now_and_then_gives_no_time_anew(self) -> None:
        upload, spent_s = self.upload, 0.0
        while self.connection._upload is upload and spent_s < 2 * IN_ALL * CLIENT_TIMEOUT_S:
            self.pass_time(CLIENT_TIMEOUT_S / 2, AT_LEAST_BYTES, 1e9)
            spent_s += CLIENT_TIMEOUT_S / 2
            if self.connection._upload is upload:
                self.pass_time(CLIENT_TIMEOUT_S, FULL_BYTES, 1e9, is_taken=False)
                self.take(upload)
        self.assertAlmostEqual(spent_s, IN_ALL * CLIENT_TIMEOUT_S, delta=CLIENT_TIMEOUT_S)
        self.assert_late(upload)

    def test_the_next_form_has_its_own_time(self) -> None:
        each_s = CLIENT_TIMEOUT_S / 2
        self.pass_time((IN_ALL - 1) * CLIENT_TIMEOUT_S, AT_LEAST_BYTES, each_s)
        self.connection._begin_upload(cast(Any, SimpleNamespace()))
        upload = self.upload
        self.pass_time((IN_ALL - 1) * CLIENT_TIMEOUT_S, AT_LEAST_BYTES, each_s)
        self.assertIs(self.connection._upload, upload)


if __name__ == "__main__":
    unittest.main()
