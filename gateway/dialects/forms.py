"""The model that a multipart form names (RFC 7578), found in as much of the form as has come. Pure.

Nothing else of a form is read: what it carries is passed on as it came. But a form that names its model twice, or that
some might read otherwise than others, is refused: the engine might take another model than the caller may use. So only
what clients do write is a form.
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
_LINE_END = b"\r\n"
_HEAD_END = b"\r\n\r\n"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_CHARSET = rb"(?:;[ ]*charset=[\w\-]+)?"
_CONTENT_TYPE = re.compile(
    rb"""[^;]*%b;[ ]*boundary=(?!(?i:.*boundary=))
    (?:"([\w'()+,\-./:=?](?:[\w'()+,\-./:=?\ ]{0,%d}[\w'()+,\-./:=?])?)"|([\w'+\-./:=?]{1,%d}))%b"""
    % (_CHARSET, BOUNDARY_MAX_CHARS - 2, BOUNDARY_MAX_CHARS, _CHARSET),
    re.X,
)
_HEADER_NAME = re.compile(_TOKEN)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# The name comes first, since some take the first one, and others split at any semicolon. Of a file's name, some take
# backslashes for themselves: in one with quotes or two backslashes, there is no semicolon, and none behind it.
_DISPOSITION = re.compile(
    rb"""form-data;[ ]*name=(?:"([\ !#-:?-\[\]-~]*)"|(%b))
    (;[ ]*filename=(?:"(?:[^"\\]*(?:\\[^"\\]+)*|[^"\\;]*(?:\\[^;][^"\\;]*)*)"|%b))?
    (;[ ]*filename\*=(?:%b|"%b"))?"""
    % (_TOKEN, _TOKEN, _TOKEN, _TOKEN),
    re.X,
)
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_PLAIN = (b"7bit", b"8bit", b"binary")  # ways to write a text as it is

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

    __slots__ = ("_dashes", "_part", "_parts", "_seek", "_window", "boundary", "over")

    def __init__(self, content_type: bytes) -> None:
        """Raises `unsupported_media_type`, `invalid_body`."""
        self.boundary = boundary_of(content_type)
        self._dashes = b"--" + self.boundary
        self._part = -1  # where the headers of a part begin; -1: nothing has come
        self._parts = 0
        self._seek = -1  # from where the end of a part is looked for, without its CR; -1: from none
        self._window: Text = b""  # behind the model: what has to be looked at together with what comes
        self.over = False

    def find(self, form: Text) -> Optional[Named]:
        """The field, once all of it is there. `form` is all that has come. Raises `invalid_body`, `invalid_model`."""
        if self._part < 0 and not self._has_begun(form):
            return None
        head_end = self._head_of_model(form)
        return None if head_end < 0 else self._named(form, head_end)

    def go_on(self, data: Text) -> None:
        """Look at the form in which `find` has found the model or none, and then at all that comes. Raises
        `invalid_body`, also where it names one again."""
        window = self._window + data if self._window else data
        if self._head_of_model(window) >= 0:
            raise _broken("it names its model twice")
        if self._seek >= 0:
            seen, self._seek = self._seek - 1, 1
        else:
            seen, self._part = self._part, 0
        self._window = bytes(window[seen:])

    def _head_of_model(self, form: Text) -> int:
        """Where the headers of the next part end that is a model; -1: there is none yet."""
        while not self.over:
            if self._seek >= 0:
                end = self._end_of_part(form, self._seek)
                if end < 0:  # of the delimiter, a part may have come
                    self._seek = max(self._seek, len(form) - len(self._dashes))
                    return -1
                self._part, self._seek = end + len(_LINE_END) + len(self._dashes), -1
            behind = form[self._part : self._part + 2]
            if behind == b"--":
                self.over = True
                self._part += 2
                break
            if not _LINE_END.startswith(behind) and behind != b"-":
                raise _broken("a boundary does not end its line")
            head_end = form.find(_HEAD_END, self._part, self._part + PART_HEAD_MAX_BYTES)
            if head_end < 0:
                begun = bytes(form[self._part : self._part + PART_HEAD_MAX_BYTES]).replace(_LINE_END, b"")
                if b"\n" in begun or b"\r" in begun[:-1]:  # for some, it has an end: the form may come to its own
                    raise _broken("a part has a header that is none")
                if len(form) - self._part >= PART_HEAD_MAX_BYTES:
                    raise _broken("the headers of a part are too long, or have no end")
                return -1
            if _is_model(bytes(form[self._part : head_end])):
                return head_end
            self._parts += 1
            if self._parts >= PARTS_MAX:
                raise _broken(f"it has more than {PARTS_MAX} parts")
            self._seek = head_end + 3  # what ends the head may begin the delimiter: a part may be empty
        if self.over and not _LINE_END.startswith(form[self._part : self._part + 3]):
            raise _broken("something comes behind its end")
        return -1

    def _end_of_part(self, form: Text, start: int) -> int:
        """Where the next delimiter begins, whose LF does not come before `start`; -1: there is none yet. Raises
        `invalid_body` where a boundary stands at the begin of a line that has another end than CRLF before it."""
        end = form.find(b"\n" + self._dashes, start)
        if form.find(b"\r" + self._dashes, start, len(form) if end < 0 else end) >= 0 or (
            end >= 0 and form[end - 1 : end] != b"\r"
        ):
            raise _broken("a boundary comes behind a line's end that is not CRLF")
        return end if end < 0 else end - 1

    def _has_begun(self, form: Text) -> bool:
        if not self._dashes.startswith(form[: len(self._dashes)]):
            raise _broken("it does not begin with its boundary")
        if len(form) < len(self._dashes):
            return False
        self._part = len(self._dashes)
        return True

    def _named(self, form: Text, head_end: int) -> Optional[Named]:
        start = head_end + len(_HEAD_END)
        end = self._end_of_part(form, head_end + 3)
        if end < 0:
            if len(form) - start > MODEL_MAX_BYTES + len(_LINE_END) + len(self._dashes):
                raise _broken("the model's name is too long")
            return None
        self._seek = end + 1
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
    found = _CONTENT_TYPE.fullmatch(content_type)
    if found is None:
        raise _broken("Content-Type names no boundary of 1 to 70 characters, or something else")
    return bytes(found[1] or found[2])


def _is_model(head: bytes) -> bool:
    """Whether a part is the model; `head`: its headers, each behind its CRLF. Raises `invalid_body`."""
    told: dict[bytes, bytes] = {}
    for line in head.split(_LINE_END)[1:]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not _HEADER_NAME.fullmatch(name) or _CONTROL.search(value):
            raise _broken("a part has a header that is none")
        if name in told:
            raise _broken("a part has a header twice")
        told[name] = value.strip(b" \t")
    found = _DISPOSITION.fullmatch(told.get(b"content-disposition", b""))
    if found is None:
        raise _broken('a part has no Content-Disposition like: form-data; name="a"; filename="b"')
    name = found[2] if found[1] is None else found[1]
    if _ESCAPED.sub(lambda escaped: bytes([int(escaped[1], 16)]), name).strip().lower() != b"model":
        return False
    if name != b"model" or found[3] or found[4]:
        raise _broken("a part is a model in one reading only")
    if told.get(b"content-transfer-encoding", b"binary").lower() not in _PLAIN:
        raise _broken("the model's name is encoded")
    return True


def without_end() -> RequestRefused:
    """What is wrong with a form that has come, and is not over."""
    return _broken("it has no end")


def _broken(what: str) -> RequestRefused:
    return RequestRefused("invalid_body", f"the form is broken: {what}")
