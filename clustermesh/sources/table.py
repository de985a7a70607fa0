"""Files folded into one table of objects: what a broken file keeps, and who wins when two documents name one object.

Rules
- A document that cannot be read is a problem; every other document, in its file and in others, counts.
- While a file has a broken document, objects that its last good version had and that no good document of it names are
  kept: an editor or a copy at work leaves half a file for a moment, and half a file must not empty a service.
- An object given twice is a problem; the first counts: of two files the one whose path sorts first, within one file
  the one that comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from clustermesh.errors import DecodeError, Invalid, printable
from clustermesh.sources.decoding import decode_objects
from clustermesh.sources.documents import parse_json, parse_yaml, split_documents
from clustermesh.sources.objects import Object, Ref

MAX_BYTES: Final = 64 * 1024 * 1024
"""The largest file that is read."""


class Problem(NamedTuple):
    """Something in the source that is not acted on. `document` counts from 1; 0 is the file as a whole."""

    file: str
    document: int
    sentence: str

    def __str__(self) -> str:
        where = f"{self.file}, document {self.document}" if self.document else self.file
        return printable(f"{where}: {self.sentence}")


class Entry(NamedTuple):
    """An object, and the document it stands in."""

    document: int
    value: Object


Found = tuple[Ref, Object] | Invalid
"""An object, or why there is none."""


class Manifest(Struct, frozen=True):
    """What one file says. `broken` is set where some document of it could not be read.

    `documents` is what each document's text was found to hold: a text that is met again is not parsed again.
    """

    objects: Mapping[Ref, Entry] = {}
    problems: tuple[Problem, ...] = ()
    broken: bool = False
    documents: Mapping[str, tuple[Found, ...]] = {}


EMPTY: Final = Manifest()


def read_manifest(file: str, data: bytes, before: Manifest = EMPTY) -> Manifest:
    """`data` as the content of `file`, which held `before`; never raises on garbage, which becomes problems."""
    objects: dict[Ref, Entry] = {}
    problems: list[Problem] = []
    broken = False
    documents: dict[str, tuple[Found, ...]] = {}
    for number, found in _decode_file(file, data, before.documents, documents):
        if isinstance(found, Invalid):
            problems.append(Problem(file, number, str(found)))
            broken = True
        elif found[0] in objects:
            first = objects[found[0]].document
            problems.append(Problem(file, number, f"{found[0]}: is given twice; document {first} counts"))
        else:
            objects[found[0]] = Entry(number, found[1])
    return Manifest(objects, tuple(problems), broken, documents)


def unreadable(file: str, reason: str) -> Manifest:
    """A file that could not be read at all."""
    return Manifest(problems=(Problem(file, 0, reason),), broken=True)


def _decode_file(
    file: str, data: bytes, known: Mapping[str, tuple[Found, ...]], documents: dict[str, tuple[Found, ...]]
) -> Iterator[tuple[int, Found]]:
    if len(data) > MAX_BYTES:
        yield 0, DecodeError("file", f"{len(data)} bytes", f"must be at most {MAX_BYTES} bytes")
    elif file.endswith(".json"):
        yield from ((1, found) for found in _decode_document(partial(parse_json, data)))
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            yield 0, DecodeError("file", data[e.start : e.start + 8], "must be UTF-8 text")
            return
        for document in split_documents(text):
            entries = known.get(document.text)
            # A fault names its line, which may be another one now.
            if entries is None or any(isinstance(found, Invalid) for found in entries):
                entries = tuple(_decode_document(partial(parse_yaml, document)))
            documents[document.text] = entries
            yield from ((document.number, found) for found in entries)


def _decode_document(parse: Callable[[], object]) -> Iterator[Found]:
    try:
        value = parse()
    except Invalid as e:
        yield e
        return
    if value is not None:
        yield from decode_objects(value)


class ObjectTable:
    """Every file's objects, duplicates settled: `objects` holds the one that counts for each Ref."""

    def __init__(self) -> None:
        self.objects: dict[Ref, Object] = {}
        self._files: dict[str, Manifest] = {}
        self._claims: dict[Ref, set[str]] = {}
        self._contested: set[Ref] = set()
        self._never_whole: set[str] = set()
        self._faulty: set[str] = set()

    @property
    def complete(self) -> bool:
        """False while some file has been broken ever since it was first seen, so that nobody knows what it holds."""
        return not self._never_whole

    def put(self, file: str, manifest: Manifest) -> set[Ref]:
        """Take `manifest` as what `file` says now; returns the objects that came, went or changed by it."""
        before = self._files.get(file, EMPTY)
        if not manifest.broken:
            self._never_whole.discard(file)
        elif file in self._files:
            manifest = replace(manifest, objects={**before.objects, **manifest.objects})
        else:
            self._never_whole.add(file)
        self._files[file] = manifest
        (self._faulty.add if manifest.problems else self._faulty.discard)(file)
        return self._settle(file, before.objects, manifest.objects)

    def remove(self, file: str) -> set[Ref]:
        """Forget `file`; returns the objects that went or changed by it."""
        before = self._files.pop(file, EMPTY)
        self._never_whole.discard(file)
        self._faulty.discard(file)
        return self._settle(file, before.objects, {})

    def locate(self, ref: Ref) -> tuple[str, int]:
        """The file and document that say what counts for `ref`."""
        file = min(self._claims[ref])
        return file, self._files[file].objects[ref].document

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the files themselves, by path."""
        for file in sorted(self._faulty):
            yield from self._files[file].problems
        for ref in sorted(self._contested):
            first, *others = sorted(self._claims[ref])
            for file in others:
                document = self._files[file].objects[ref].document
                yield Problem(file, document, f"{ref}: is given in {first} already, which counts")

    def _settle(self, file: str, before: Mapping[Ref, Entry], after: Mapping[Ref, Entry]) -> set[Ref]:
        gone = [ref for ref in before if ref not in after]
        new = [ref for ref, entry in after.items() if ref not in before or before[ref].value is not entry.value]
        for ref in gone:
            self._claims[ref].discard(file)
        for ref in new:
            self._claims.setdefault(ref, set()).add(file)
        return {ref for ref in gone + new if self._settle_one(ref)}

    def _settle_one(self, ref: Ref) -> bool:
        """Choose the object that counts for `ref`; True when that changed anything."""
        claims, before = self._claims[ref], self.objects.get(ref)
        (self._contested.add if len(claims) > 1 else self._contested.discard)(ref)
        if not claims:
            del self._claims[ref]
            return self.objects.pop(ref, None) is not None
        self.objects[ref] = self._files[min(claims)].objects[ref].value
        return self.objects[ref] != before
