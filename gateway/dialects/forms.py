"""The model that a multipart form names (RFC 7578), found in as much of the form as has come. Pure.

Nothing else of a form is read: what it carries is passed on as it came. But a form that names its model twice, or in a
way that some read and others do not, is refused: the engine might take another one than the caller may use.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional, Union

from gateway.errors import RequestRefused

FORM = b"multipart/form-data"
BOUNDARY_MAX_CHARS = 70  # RFC 2046, 5.1.1
PART_HEAD_MAX_BYTES = 8192
MODEL_MAX_BYTES = 1024
PARTS_MAX = 1000  # each costs far more time than its bytes say
_HEAD_END = b"\r\n\r\n"
_LINE_END_BYTES = 2
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,%d}[0-9A-Za-z'()+_,\-./:=?]" % (BOUNDARY_MAX_CHARS - 1))
_PARAMETER = re.compile(rb"""[ \t]*;[ \t]*([^\s;="]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))[ \t]*""")
_DISPOSITION = re.compile(rb"^content-disposition[ \t]*:[ \t]*form-data(.*)", re.I | re.M)
_MAY_NAME = re.compile(rb"model|[*\\]")  # else the headers of a part need not be read
_ESCAPED = re.compile(rb"\\(.)")
_FOLD = re.compile(rb"\r\n[ \t]+")

Text = Union[bytes, bytearray]


class Named(NamedTuple):
    """The model's name, and where in the form it stands."""

    model: str
    start: int
    end: int


class FormReader:
    """Looks for the field `model` in a form that grows. `over`: it has ended. One thread at a time.

    What has been looked at is not looked at again, however the form is cut.
    """

    __slots__ = ("_delimiter", "_part", "_parts", "_seek", "_window", "boundary", "over")

    def __init__(self, content_type: bytes) -> None:
        """Raises `unsupported_media_type`, `invalid_body`."""
        self.boundary = boundary_of(content_type)
        self._delimiter = b"\r\n--" + self.boundary
        self._part = -1  # where the headers of a part begin; -1: nothing has come
        self._parts = 0
        self._seek = -1  # from where the end of a part is looked for; -1: from none
        self._window: Text = b""  # behind the model: what has to be looked at together with what comes
        self.over = False

    def find(self, form: Text) -> Optional[Named]:
        """The field, once all of it is there. `form` is all that has come. Raises `invalid_body`, `invalid_model`."""
        if self._part < 0 and not self._has_begun(form):
            return None
        head_end = self._head_of_model(form)
        return None if head_end < 0 else self._named(form, head_end)

    def go_on(self, data: Text) -> None:
        """Look at the form in which `find` has found the model, and then at all that comes. Raises `invalid_body` where
        it names one again."""
        window = self._window + data if self._window else data
        if self._head_of_model(window) >= 0:
            raise _broken("it names its model twice")
        if self._seek >= 0:
            seen, self._seek = self._seek, 0
        else:
            seen, self._part = self._part, 0
        self._window = b"" if self.over else bytes(window[seen:])

    def _head_of_model(self, form: Text) -> int:
        """Where the headers of the next part end that is a model; -1: there is none yet."""
        while not self.over:
            if self._seek >= 0:
                end = form.find(self._delimiter, self._seek)
                if end < 0:  # of the delimiter, a part may have come
                    self._seek = max(self._seek, len(form) - len(self._delimiter) + 1)
                    return -1
                self._part, self._seek = end + len(self._delimiter), -1
            if form[self._part : self._part + 2] == b"--":
                self.over = True
                return -1
            head_end = form.find(_HEAD_END, self._part, self._part + PART_HEAD_MAX_BYTES)
            if head_end < 0:
                if len(form) - self._part >= PART_HEAD_MAX_BYTES:
                    raise _broken("the headers of a part are too long, or have no end")
                return -1
            if _is_model(bytes(form[self._part : head_end])):
                return head_end
            self._parts += 1
            if self._parts >= PARTS_MAX:
                raise _broken(f"it has more than {PARTS_MAX} parts")
            self._seek = head_end + _LINE_END_BYTES  # what ends the head may begin the delimiter: a part may be empty
        return -1

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
        self._seek = end
        end = max(start, end)
        try:
            return Named(form[start:end].decode(), start, end)
        except UnicodeDecodeError as error:
            raise RequestRefused("invalid_model", "model must be a text", param="model") from error


def boundary_of(content_type: bytes) -> bytes:
    """What separates the parts of a form. Raises `unsupported_media_type`, `invalid_body`.

    One that others might read differently is none: the engine gets the same header.
    """
    kind, _, _ = content_type.partition(b";")
    if kind.strip().lower() != FORM:
        raise RequestRefused("unsupported_media_type", "send a form with Content-Type: multipart/form-data")
    told = _parameters(content_type[len(kind) :].rstrip(b"; \t"))
    boundaries = [value for name, value in told if name.startswith(b"boundary")]
    if len(boundaries) != 1 or (b"boundary", boundaries[0]) not in told or not _BOUNDARY.fullmatch(boundaries[0]):
        raise _broken("Content-Type names no boundary of 1 to 70 characters")
    return boundaries[0]


def _is_model(head: bytes) -> bool:
    if not _MAY_NAME.search(head):
        return False
    found = _DISPOSITION.findall(_FOLD.sub(b" ", head))
    told = dict(_parameters(found[0].rstrip(b"; \t\r"))) if found else {}
    if len(found) > 1 or any(name.startswith(b"name*") for name in told):
        raise _broken("a part has a name that can be read in two ways")
    name = _ESCAPED.sub(rb"\1", told.get(b"name", b""))
    return name == b"model" and b"filename" not in told and b"filename*" not in told


def _parameters(text: bytes) -> list[tuple[bytes, bytes]]:
    """What follows a header's value, names in lower case; none where it cannot be read to its end."""
    told, at = [], 0
    while at < len(text):
        found = _PARAMETER.match(text, at)
        if found is None:
            return []
        told.append((found[1].lower(), found[3] if found[2] is None else found[2]))
        at = found.end()
    return told


def without_end() -> RequestRefused:
    """What is wrong with a form that has come, and is not over."""
    return _broken("it has no end")


def _broken(what: str) -> RequestRefused:
    return RequestRefused("invalid_body", f"the form is broken: {what}")
