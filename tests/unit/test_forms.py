"""The model that a form names, however the form is cut."""

from __future__ import annotations

import contextlib
import time
import unittest
from typing import Optional

from gateway.dialects.forms import BOUNDARY_MAX_CHARS, MODEL_MAX_BYTES, PART_HEAD_MAX_BYTES, FormReader, boundary_of
from gateway.errors import RequestRefused

KIND = b"multipart/form-data; boundary=xyz"
FILE = (
    b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav',
    b"RIFF\r\n--xy\0--xyz",
)
MODEL = (b'Content-Disposition: form-data; name="model"', b"whisper-1")
LANGUAGE = (b'content-disposition: form-data; name="language"', b"de")


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"xyz") -> bytes:
    return b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, *part) for part in parts) + b"--%b--\r\n" % boundary


def named(data: bytes, kind: bytes = KIND) -> Optional[str]:
    found = FormReader(kind).find(data)
    return None if found is None else found.model


class FindTest(unittest.TestCase):
    def test_the_model_is_found_wherever_it_stands(self) -> None:
        for parts in ((MODEL, FILE), (FILE, MODEL), (LANGUAGE, FILE, LANGUAGE, MODEL)):
            data = form(*parts)
            found = FormReader(KIND).find(data)
            assert found is not None
            self.assertEqual((found.model, data[found.start : found.end]), ("whisper-1", b"whisper-1"))

    def test_however_it_is_cut_it_is_found_as_soon_as_it_is_there(self) -> None:
        data = form(LANGUAGE, FILE, MODEL, FILE)
        end = data.index(b"whisper-1\r\n--xyz") + len(b"whisper-1\r\n--xyz")
        for step in (1, 2, 3, 7):
            reader = FormReader(KIND)
            sizes = [size for size in range(step, len(data) + step, step) if reader.find(data[:size]) is not None]
            self.assertEqual(sizes[0], next(size for size in range(step, len(data) + step, step) if size >= end))

    def test_without_one_it_is_over_at_its_end(self) -> None:
        data = form(FILE, LANGUAGE)
        reader = FormReader(KIND)
        self.assertIsNone(reader.find(data[:-5]))
        self.assertFalse(reader.over)
        self.assertIsNone(reader.find(data))
        self.assertTrue(reader.over)
        empty = FormReader(KIND)
        self.assertIsNone(empty.find(b"--xyz--\r\n"))
        self.assertTrue(empty.over)

    def test_what_is_in_a_file_is_no_model(self) -> None:
        hidden = (FILE[0], b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n')
        self.assertEqual(named(form(hidden, MODEL)), "whisper-1")
        other_head = (b'X-Name: model\r\nContent-Disposition: form-data; name="models"', b"other")
        self.assertEqual(named(form(other_head, MODEL)), "whisper-1")

    def test_parts_may_be_empty(self) -> None:
        self.assertEqual(named(form((LANGUAGE[0], b""), MODEL)), "whisper-1")
        self.assertEqual(named(form((MODEL[0], b""))), "")
        self.assertEqual(named(b"--xyz\r\n" + LANGUAGE[0] + b"\r\n\r\n--xyz" + form(MODEL)[5:]), "whisper-1")

    def test_its_name_may_be_told_in_many_ways(self) -> None:
        for head in (
            b"content-disposition:form-data;name=model",
            b'CONTENT-DISPOSITION: form-data; name="model"',
            b'Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name="model"\r\nX: y',
            b'Content-Disposition: form-data; name="model"\r\nContent-Length: 9\r\nContent-Transfer-Encoding: 8bit',
        ):
            self.assertEqual(named(form((head, b"whisper-1"))), "whisper-1", head)

    def test_what_clients_write_of_files_is_read(self) -> None:
        for told in (
            b'name="image[]"; filename="gr\xc3\xb6\xc3\x9fe %22a\\b%22 100%.png"',  # browsers, Node, requests
            b'name="file"; filename="C:\\a;b=c.wav"',
            b'name="file"; filename="gr%C3%B6%C3%9Fe%20%22a%5Cb%22"',  # aiohttp
            b'name="timestamp_granularities%5B%5D"',
            b'name="file"; filename="say \\"a\\\\b\\""',  # Go, curl
            b'name="file"; filename="a\\\\"',
            b"name=\"file\"; filename*=utf-8''gr%C3%B6%C3%9Fe.wav",
            b"name=file; filename=a.wav; filename*=utf-8''a.wav",  # .NET
            b'name="file"; filename="=?utf-8?B?w7Y=?="; filename*="UTF-8\'\'%C3%B6"',
            b'name="file"; filename=""',
        ):
            head = b"Content-Type: audio/wav\r\nContent-Disposition: form-data; " + told
            self.assertEqual(named(form((head, b"x"), MODEL)), "whisper-1", told)

    def test_a_part_that_some_read_otherwise_is_refused_wherever_it_stands(self) -> None:
        disposition = b"Content-Disposition: "
        heads = [
            disposition + told
            for told in (
                b'form-data; name="model"; x',
                b'x; name="model"',
                b'Form-Data; name="model"',
                b'form-data; Name="model"',
                b'form-data; name = "model"',
                b'form-data; name="model";',
                b'form-data; name="model"; y=a b',
                b'form-data; name="model"; filename=""',
                b'form-data; name="model"; filename=m',
                b"form-data; name=\"model\"; filename*=utf-8''m",
                b'form-data; name="model"; name="y"',
                b'form-data; name="y"; name="model"',
                b'form-data; filename="y"; name="model"',
                b'form-data; name="y"; filename="a\\"; name="model"',
                b'form-data; name="y"; filename="a\\"; name=model; \\"b"',
                b'form-data; name="y"; filename="a"; filename="b"',
                b'form-data; name="y"; filename="\\\\"; filename*=";name=model;"',
                b"form-data; name*=utf-8''model",
                b'form-data; name="mo\\del"',
                b'form-data; name="y; name=model; z"',
                b'form-data; name="y"; x="; name=model',
                b'form-data; name="Model"',
                b'form-data; name=" model"',
                b'form-data; name="mode%6c"',
                b'form-data; name="\xc2\xa0model"',
                b'form-data; name="model\t"',
                b'form-data; name="=?utf-8?Q?model?="',
                b'form-data; name=""model""',
                b"form-data; name=",
                b"form-data",
                b"",
            )
        ]
        heads += [
            b"X: y",
            b'Content-Disposition : form-data; name="model"',
            b' Content-Disposition: form-data; name="model"',
            disposition + b'form-data;\r\n name="model"',
            disposition + b'form-data; name="y"\r\n' + disposition + b'form-data; name="model"',
            disposition + b'form-data; name="y"\n' + disposition + b'form-data; name="model"',
            disposition + b'form-data; name="y"\r' + disposition + b'form-data; name="model"',
            disposition + b'form-data; name="y"\0',
            disposition + b'form-data; name="y"\r\nX',
            disposition + b'form-data; name="y"\n\nsecret',
            MODEL[0] + b"\r\nContent-Transfer-Encoding: base64",
        ]
        for head in heads:
            for data in (form(MODEL, (head, b"other"), FILE), form((head, b"other"), MODEL), form(FILE, (head, b"m"))):
                self.assert_refused(data)
        for end in (b"\n\nother", b"\n", b"\r\r", b"\rX: y"):  # though the form ends before that head does
            self.assert_refused(form(MODEL)[:-9] + b"--xyz\r\n" + MODEL[0] + end)
        for head in (b"", b"\r\n"):
            self.assert_refused(form(MODEL)[:-9] + b"--xyz" + head + b"\r\n\r\nother\r\n--xyz--\r\n")

    def test_a_boundary_that_only_some_see_is_refused(self) -> None:
        part = MODEL[0] + b"\r\n\r\nother"
        for inside in (
            b"x\n--xyz\n" + part.replace(b"\r", b""),
            b"x\r--xyz\r" + part.replace(b"\n", b""),
            b"x\n--xyz\r\n" + part,
            b"x\r\n--xyz\n" + part,
            b"x\r\n--xyz\r" + part,
            b"x\r\n--xyz \r\n" + part,
            b"x\r\n--xyz\t\r\n" + part,
            b"x\r\n--xyza\r\n" + part,
            b"x\r\n--xyz-\r\n" + part,
            b"\n--xyz",
            b"\r--xyz",
        ):
            self.assert_refused(form(MODEL, (LANGUAGE[0], inside)))
            self.assert_refused(form((LANGUAGE[0], inside), MODEL))
            self.assert_refused(form((MODEL[0], inside)))
        for end in (b" ", b"x", b"\n", b"\r\n\r\n", b"\r\n--xyz\r\n" + part, b"-"):
            self.assert_refused(form(MODEL)[:-2] + end)
            self.assert_refused(form(LANGUAGE)[:-2] + end)
        for begin in (b"\r\n", b"x\r\n", b"\n"):
            self.assert_refused(begin + form(MODEL))

    def assert_refused(self, data: bytes) -> None:
        """However it is cut, also in two pieces only."""
        for cuts in [range(step, len(data), step) for step in (1, 2, 7)] + [[cut] for cut in range(1, len(data) + 1)]:
            with self.assertRaises(RequestRefused, msg=(data, cuts)) as caught:
                self.read_pieces(data, [*cuts, len(data)])
            self.assertEqual(caught.exception.code, "invalid_body")

    def read_pieces(self, data: bytes, ends: list[int]) -> FormReader:
        reader = FormReader(KIND)
        come = next((end for end in ends if reader.find(data[:end]) is not None or reader.over), len(data))
        reader.go_on(data[:come])
        for start, end in zip(ends, ends[1:]):
            if start >= come:
                reader.go_on(data[start:end])
        return reader

    def test_a_second_model_is_refused_however_the_form_is_cut(self) -> None:
        for head in (
            MODEL[0],
            b"Content-Disposition: form-data; name=model",
            b'Content-Disposition: form-data; name="mo\\del"',
            b"Content-Disposition: form-data; name*=utf-8''%6dodel",
            b'Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="model"',
        ):
            data = form(MODEL, FILE, LANGUAGE, (head, b"other"), LANGUAGE)
            for step in (1, 3, 50, len(data)):
                with self.subTest(head=head, step=step), self.assertRaises(RequestRefused) as caught:
                    self.read_on(data, step)
                self.assertEqual(caught.exception.code, "invalid_body")

    def test_what_comes_behind_the_model_may_be_anything_else(self) -> None:
        data = form(MODEL, LANGUAGE, (FILE[0], b"\r\n--xy model" * 1000), (LANGUAGE[0], b""), LANGUAGE)
        for step in (1, 3, 50, len(data)):
            self.assertTrue(self.read_on(data, step).over)
            self.assertTrue(self.read_on(data[:-2], step).over)

    def read_on(self, data: bytes, step: int) -> FormReader:
        reader, come = FormReader(KIND), step
        while reader.find(data[:come]) is None:
            come += step
        reader.go_on(data[:come])
        for at in range(come, len(data), step):
            reader.go_on(data[at : at + step])
        return reader

    def test_a_form_of_countless_parts_costs_little(self) -> None:
        for head in (
            b"",
            b'Content-Disposition: form-data; name="a"',
            b"Content-Disposition: form-data" + b';"' * 4000,
        ):
            part = b"--xyz\r\n" + head + b"\r\n\r\n\r\n"
            reader, began_s = FormReader(KIND), time.process_time()
            try:
                reader.find(part * (1 + 1_000_000 // len(part)))
            except RequestRefused as error:
                self.assertEqual(error.code, "invalid_body")
            self.assertLess(time.process_time() - began_s, 0.3, head[:50])

    def test_a_head_that_is_hard_to_read_costs_little(self) -> None:
        for unit in (b";", b';"', b';a="x', b";a*0=x", b';\\"', b'; model="', b"\r\n model", b"\\a", b"\\\\", b" "):
            text = (unit * 8000)[:8000]
            began_s = time.process_time()
            for _ in range(20):
                with contextlib.suppress(RequestRefused):
                    boundary_of(b"multipart/form-data" + text)
                with contextlib.suppress(RequestRefused):
                    FormReader(KIND).find(form((b"Content-Disposition: form-data" + text, b"model")))
                with contextlib.suppress(RequestRefused):
                    head = b'Content-Disposition: form-data; name="file"; filename="' + text
                    FormReader(KIND).find(form((head, b"model")))
            self.assertLess(time.process_time() - began_s, 0.5, unit)

    def test_names_are_texts(self) -> None:
        self.assertEqual(named(form((MODEL[0], "größe".encode()))), "größe")
        with self.assertRaises(RequestRefused) as caught:
            named(form((MODEL[0], b"\xff")))
        self.assertEqual(caught.exception.code, "invalid_model")

    def test_what_is_no_form_is_refused(self) -> None:
        for data in (b"{}", b"--xy", b"\r\n--xyz", b"--xyzw"[:5] + b"\r\n" + b"h" * PART_HEAD_MAX_BYTES):
            data = data if len(data) > 5 else data + b"-----"
            with self.subTest(data=data[:20]), self.assertRaises(RequestRefused) as caught:
                named(data)
            self.assertEqual(caught.exception.code, "invalid_body")

    def test_a_name_without_an_end_is_refused(self) -> None:
        data = form((MODEL[0], b"m" * (MODEL_MAX_BYTES + 100)))[:-10]
        with self.assertRaises(RequestRefused) as caught:
            named(data)
        self.assertEqual(caught.exception.code, "invalid_body")

    def test_a_large_file_is_looked_at_once(self) -> None:
        class Counted(bytearray):
            looked_at = 0

            def find(self, mark: bytes, start: int = 0, end: int = 1 << 60) -> int:  # type: ignore[override]
                at = super().find(mark, start, end)
                Counted.looked_at += (min(end, len(self)) if at < 0 else at) - start
                return at

        data = Counted(form(FILE)[: -len(b"\r\n--xyz--\r\n")])
        reader = FormReader(KIND)
        for _ in range(200):
            data += b"\r\n-" * 1000
            self.assertIsNone(reader.find(data))
        self.assertLess(Counted.looked_at, 3 * len(data))


class BoundaryTest(unittest.TestCase):
    def test_boundaries_may_be_quoted(self) -> None:
        self.assertEqual(boundary_of(b'Multipart/Form-Data; charset=utf-8; boundary="a b"'), b"a b")
        for text in (b"a", b"ab", b"a" * BOUNDARY_MAX_CHARS, b"----=_Part_1.2"):
            self.assertEqual(boundary_of(b'multipart/form-data; boundary="%b"' % text), text)
            self.assertEqual(boundary_of(b"multipart/form-data; boundary=%b; charset=utf-8" % text), text)

    def test_others_are_refused(self) -> None:
        for kind, code in (
            (b"", "unsupported_media_type"),
            (b"application/json", "unsupported_media_type"),
            (b"multipart/mixed; boundary=x", "unsupported_media_type"),
            (b"multipart/form-data", "invalid_body"),
            (b"multipart/form-data; boundary=", "invalid_body"),
            (b"multipart/form-data; xboundary=a; boundary=b", "invalid_body"),
            (b'multipart/form-data; x="boundary=a"; boundary=b', "invalid_body"),
            (b"multipart/form-data; boundary=a; x=boundary=b", "invalid_body"),
            (b"multipart/form-data; boundary=a boundary=b", "invalid_body"),
            (b"multipart/form-data; boundary=aboundary=b", "invalid_body"),
            (b"multipart/form-data; boundary=a,b", "invalid_body"),
            (b"multipart/form-data; boundary = a", "invalid_body"),
            (b'multipart/form-data; boundary=" a"', "invalid_body"),
            (b'multipart/form-data; boundary=""', "invalid_body"),
            (b"multipart/form-data; boundary=" + b"x" * (BOUNDARY_MAX_CHARS + 1), "invalid_body"),
            (b"multipart/form-data; boundary=\xff", "invalid_body"),
            (b"multipart/form-data; boundary=a; boundary=b", "invalid_body"),
            (b"multipart/form-data; boundary=a; Boundary*=utf-8''b", "invalid_body"),
            (b"multipart/form-data; boundary=a, multipart/form-data; boundary=b", "invalid_body"),
            (b'multipart/form-data; x="; boundary=a', "invalid_body"),
            (b'multipart/form-data; boundary="a ', "invalid_body"),
            (b'multipart/form-data; boundary="a "', "invalid_body"),
            (b'multipart/form-data; boundary="a\\b"', "invalid_body"),
        ):
            with self.subTest(kind=kind), self.assertRaises(RequestRefused) as caught:
                boundary_of(kind)
            self.assertEqual(caught.exception.code, code)


if __name__ == "__main__":
    unittest.main()
