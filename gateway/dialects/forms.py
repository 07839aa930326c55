"""The model that a multipart form names (RFC 7578), found in as much of the form as has come. Pure.

Nothing else of a form is read: what it carries is passed on as it came.
"""

from __future__ import annotations

import email.message
import email.parser
from typing import NamedTuple, Optional, Union

from gateway.errors import RequestRefused

FORM = b"multipart/form-data"
BOUNDARY_MAX_CHARS = 70  # RFC 2046, 5.1.1
PART_HEAD_MAX_BYTES = 8192
MODEL_MAX_BYTES = 1024
_HEAD_END = b"\r\n\r\n"
_LINE_END_BYTES = 2

Text = Union[bytes, bytearray]


class Named(NamedTuple):
    """The model's name, and where in the form it stands."""

    model: str
    start: int
    end: int


class FormReader:
    """Looks for the field `model` in a form that grows. `over`: there is no such field. One thread at a time.

    What has been looked at is not looked at again, however the form is cut.
    """

    __slots__ = ("_delimiter", "_part", "_seek", "boundary", "over")

    def __init__(self, content_type: bytes) -> None:
        """Raises `unsupported_media_type`, `invalid_body`."""
        self.boundary = boundary_of(content_type)
        self._delimiter = b"\r\n--" + self.boundary
        self._part = -1  # where the headers of a part begin; -1: nothing has come
        self._seek = -1  # from where the end of a part that is not the model is looked for; -1: from none
        self.over = False

    def find(self, form: Text) -> Optional[Named]:
        """The field, once all of it is there. `form` is all that has come. Raises `invalid_body`, `invalid_model`."""
        if self._part < 0 and not self._has_begun(form):
            return None
        while not self.over:
            if self._seek >= 0:
                end = form.find(self._delimiter, self._seek)
                if end < 0:  # of the delimiter, a part may have come
                    self._seek = max(self._seek, len(form) - len(self._delimiter) + 1)
                    return None
                self._part, self._seek = end + len(self._delimiter), -1
            if form[self._part : self._part + 2] == b"--":
                self.over = True
                return None
            head_end = form.find(_HEAD_END, self._part, self._part + PART_HEAD_MAX_BYTES)
            if head_end < 0:
                if len(form) - self._part >= PART_HEAD_MAX_BYTES:
                    raise _broken("the headers of a part are too long, or have no end")
                return None
            if _is_model(bytes(form[self._part : head_end])):
                return self._named(form, head_end)
            self._seek = head_end + _LINE_END_BYTES  # what ends the head may begin the delimiter: a part may be empty
        return None

    def _has_begun(self, form: Text) -> bool:
        first = self._delimiter[_LINE_END_BYTES:]
        if not first.startswith(form[: len(first)]):
            raise _broken("it does not begin with its boundary")
        if len(form) < len(first):
            return False
        self._part = len(first)
        return True

    def _named(self, form: Text, head_end: int) -> Optional[Named]:
        start = head_end + len(_HEAD_END)
        end = form.find(self._delimiter, head_end + _LINE_END_BYTES)
        if end < 0:
            if len(form) - start > MODEL_MAX_BYTES + len(self._delimiter):
                raise _broken("the model's name is too long")
            return None
        end = max(start, end)
        try:
            return Named(form[start:end].decode(), start, end)
        except UnicodeDecodeError as error:
            raise RequestRefused("invalid_model", "model must be a text", param="model") from error


def boundary_of(content_type: bytes) -> bytes:
    """What separates the parts of a form. Raises `unsupported_media_type`, `invalid_body`."""
    message = email.message.Message()
    message["Content-Type"] = content_type.decode("latin-1")
    if message.get_content_type().encode() != FORM:
        raise RequestRefused("unsupported_media_type", "send a form with Content-Type: multipart/form-data")
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= BOUNDARY_MAX_CHARS or not boundary.isascii():
        raise _broken("Content-Type names no boundary of 1 to 70 characters")
    return boundary.encode()


def _is_model(head: bytes) -> bool:
    headers = email.parser.BytesHeaderParser().parsebytes(head.lstrip())
    disposition = "content-disposition"
    return headers.get_param("name", header=disposition) == "model" and headers.get_filename() is None


def _broken(what: str) -> RequestRefused:
    return RequestRefused("invalid_body", f"the form is broken: {what}")
