"""What nobody outside is to read, taken out of objects and texts. Pure.

Two ways, one behind the other: by where it stands (data of Secrets, values and variables whose name says so), and by
what it is: every secret that was seen anywhere, in any of the forms that it has in a text, and what looks like one.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

from clustermesh.redaction import PATH, redact

MARK: Final = "REDACTED"
_MARK: Final = MARK.encode()
_SHORTEST: Final = 6
"""Bytes: what is shorter is a word of its own, and stands in every text."""
_LINE: Final = 24
_NESTED: Final = 8192
"""Bytes: what is longer, as a release of Helm's, nobody packs once more."""
_GRAM, _STRIDE = 8, 16
_SEEN: Final = _GRAM + _STRIDE - 1
"""Whatever is so long has a gram at a multiple of the stride, wherever it is."""
_FEW: Final = 128
"""Short secrets that are looked for one by one."""
_NAMES: Final = re.compile(
    r"(?i:pass(word|wd|phrase)?$|psk$|secret|token|credential|private|api[-_.]?key|authorization|cookie)|"
    r"(^|[-_.])(?i:key)$|[a-z]Key$"
)
"""Of keys and variables."""
_NO_NAMES: Final = re.compile(r"(?i)(name|ref|file|path|seconds|ttl|enabled)$")
_LONG: Final = 64
"""What is just called "key" may be that of a label or a toleration; one of cryptography is longer."""
_IS_PATH: Final = re.compile(PATH)
_FLAG: Final = re.compile(r"--?([\w.-]+)")
_NOISE: Final = ("managedFields",)
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_TEXTS: Final = frozenset({"args", "command", "annotations", "message", "note", "httpHeaders", "data"})
"""What people and programs write as they like, as an object has it."""


class Redactor:
    """Learns secrets from objects, and then takes them out of texts. One that is `blind` could learn none, and leaves
    nothing of what may hold them."""

    def __init__(self) -> None:
        self.blind = False
        self._forms: set[bytes] = set()
        self._grams: dict[bytes, list[tuple[bytes, int]]] = {}
        self._short, self._short_forms = dict[bytes, list[bytes]](), 0  # by how they begin

    def learn(self, secret: bytes) -> None:
        """Never to be shown, in no form."""
        for form in _forms(secret):
            if len(form) < _SHORTEST or form in self._forms:
                continue
            self._forms.add(form)
            if len(form) < _SEEN:
                self._short.setdefault(form[:_SHORTEST], []).append(form)
                self._short_forms += 1
            for offset in range(_STRIDE if len(form) >= _SEEN else 0):
                self._grams.setdefault(form[offset : offset + _GRAM], []).append((form, offset))

    def take_object(self, found: Any) -> Any:
        """An object of the Kubernetes API, or a list of them, without what stands where secrets do; those are learned.

        Of a Secret the names and sizes are left; of anything else all but variables, data and annotations that are
        named as secrets.
        """
        if isinstance(found, list):
            return [self.take_object(each) for each in found]
        if found.get("kind") == "Secret":
            return self._secret(found)
        out = self._variables(_without_noise(found))
        if found.get("kind") == "ConfigMap":
            out["data"] = MARK if self.blind else self.take_values(found.get("data") or {})
            out["binaryData"] = {
                name: f"{len(each)} characters" for name, each in (found.get("binaryData") or {}).items()
            }
        return out

    def take_values(self, found: Any, key: str = "") -> Any:
        """Any tree, as the values of a chart: what is named as a secret is none any more."""
        if isinstance(found, Mapping):
            if _is_variable(found):
                return self._variables(found)
            return {name: self.take_values(each, name) for name, each in found.items()}
        if isinstance(found, list):
            return [self.take_values(each, key) for each in found]
        return self._named(key, found) if isinstance(found, str) else found

    def _variables(self, found: Any) -> Any:
        """Containers' variables and arguments, and notes on objects, wherever they are."""
        if isinstance(found, list):
            return [self._variables(each) for each in self._arguments(found)]
        if not isinstance(found, Mapping):
            return found
        if _is_variable(found):
            value = MARK if self.blind else self._named(str(found["name"]), found["value"])
            return {**found, "value": value}
        out = {name: self._variables(each) for name, each in found.items() if name != _LAST_APPLIED}
        if self.blind:
            return out | dict.fromkeys(_TEXTS & out.keys(), MARK)
        return out | ({"annotations": self.take_values(out["annotations"])} if "annotations" in out else {})

    def _arguments(self, items: list[Any]) -> list[Any]:
        """Where a flag that is named as a secret stands alone, what comes next is its value."""
        out = list[Any]()
        for each in items:
            before = out[-1] if out else None
            flag = _FLAG.fullmatch(before) if isinstance(before, str) else None
            out.append(self._named(flag[1], each) if flag and isinstance(each, str) else each)
        return out

    def clean(self, text: bytes) -> bytes:
        """`text` without anything learned, nor what looks like a key or a token."""
        text = _without(text, sorted([*self._found_short(text), *self._found_long(text)]))
        return redact(text, _MARK)

    def _found_short(self, text: bytes) -> Iterator[tuple[int, int]]:
        """Few are looked for one by one. Of many, each place of the text is looked at instead."""
        if self._short_forms <= _FEW:
            for form in itertools.chain.from_iterable(self._short.values()):
                at = text.find(form)
                while at >= 0:
                    yield at, at + len(form)
                    at = text.find(form, at + 1)
            return
        short = self._short
        for at in range(len(text) - _SHORTEST + 1):
            if (begin := text[at : at + _SHORTEST]) in short:
                yield from ((at, at + len(form)) for form in short[begin] if text.startswith(form, at))

    def _found_long(self, text: bytes) -> Iterator[tuple[int, int]]:
        """Secrets may be thousands, and looking for one by one would take minutes: a long one shows at every so-many-th
        place of a text."""
        for at in range(0, len(text) - _GRAM + 1, _STRIDE):
            for form, offset in self._grams.get(text[at : at + _GRAM], ()):
                if text.startswith(form, at - offset) and at >= offset:
                    yield at - offset, at - offset + len(form)

    def _named(self, name: str, value: str) -> str:
        if not is_named_secret(name) or (name.lower() == "key" and len(value) < _LONG) or _IS_PATH.match(value):
            return value  # a path is where a secret is
        self.learn(value.encode())
        return MARK if value else value

    def _secret(self, found: Mapping[str, Any]) -> dict[str, Any]:
        sizes = dict[str, str]()
        for name, value in (found.get("data") or {}).items():
            plain = _decoded(str(value))
            self.learn(plain)
            for leaf in _leaves(plain):
                self.learn(leaf)
            sizes[name] = f"{MARK}: {len(plain)} bytes"
        for name, value in (found.get("stringData") or {}).items():
            for each in (str(value).encode(), *_leaves(str(value).encode())):
                self.learn(each)
            sizes[name] = f"{MARK}: {len(str(value))} bytes"
        out = {key: value for key, value in _without_noise(found).items() if key != "stringData"}
        return {**out, "data": sizes}


def _without(text: bytes, found: Iterable[tuple[int, int]]) -> bytes:
    """`found` are begin and end, sorted; what overlaps goes as one."""
    pieces, done = list[bytes](), 0
    for begin, end in found:
        if begin >= done:
            pieces += [text[done:begin], _MARK]
        done = max(done, end)
    return b"".join((*pieces, text[done:]))


def is_named_secret(name: str) -> bool:
    """Whether what has this name is a secret."""
    return bool(_NAMES.search(name)) and not _NO_NAMES.search(name)


def _is_variable(found: Mapping[str, Any]) -> bool:
    return set(found) == {"name", "value"} and isinstance(found["value"], str)


def _decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value)
    except ValueError:
        return value.encode()


def _without_noise(found: Mapping[str, Any]) -> dict[str, Any]:
    metadata = found.get("metadata")
    if not isinstance(metadata, Mapping):
        return dict(found)
    kept = {key: value for key, value in metadata.items() if key not in _NOISE}
    if isinstance(notes := kept.get("annotations"), Mapping):  # what was applied says all of a Secret once more
        kept["annotations"] = {key: value for key, value in notes.items() if key != _LAST_APPLIED}
    return {**found, "metadata": kept}


def _leaves(secret: bytes) -> Iterator[bytes]:
    """Of a Secret that is JSON, as that of a registry, what is named as a secret in it."""
    try:
        found = json.loads(secret) if secret.lstrip()[:1] in (b"{", b"[") else None
    except (ValueError, RecursionError):
        return
    waiting = [("", found)]
    while waiting:
        name, each = waiting.pop()
        if isinstance(each, Mapping):
            waiting += each.items()
        elif isinstance(each, list):
            waiting += ((name, item) for item in each)
        elif isinstance(each, str) and (name == "auth" or is_named_secret(name)):
            yield each.encode()
            if name == "auth":  # user:password in base64
                yield _decoded(each).partition(b":")[2]


def _forms(secret: bytes) -> Iterator[bytes]:
    """As texts have it: itself, in base64, in JSON, also as Go writes that, in a URL; and of one of several lines each
    long one."""
    bare = secret.strip()
    for each in {secret, bare, bare + b"\n"}:
        yield each
        yield base64.b64encode(each)
        yield base64.urlsafe_b64encode(each)
        yield base64.b64encode(each).rstrip(b"=")
    text = bare.decode(errors="replace")
    yield json.dumps(text)[1:-1].encode()
    if len(bare) <= _NESTED:
        yield base64.b64encode(base64.b64encode(bare))
        yield bare.hex().encode()
        yield json.dumps(json.dumps(text)[1:-1])[1:-1].encode()
    plain = json.dumps(text, ensure_ascii=False)[1:-1].encode()
    yield plain
    yield plain.replace(b"&", b"\\u0026").replace(b"<", b"\\u003c").replace(b">", b"\\u003e")
    yield quote(text, safe="").encode()
    yield from _lines(bare)


def _lines(secret: bytes) -> Iterable[bytes]:
    """Of a PEM file all that is no word of English; of other files what stands behind a name that says so."""
    for line in map(bytes.strip, secret.splitlines() if b"\n" in secret else ()):
        if secret.startswith(b"-----BEGIN") and len(line) >= _LINE and not line.startswith(b"-----"):
            yield line
        name, colon, value = line.partition(b":")
        if (
            colon
            and is_named_secret(name.decode(errors="replace").strip())
            and not _IS_PATH.match(value.strip().decode(errors="replace"))
        ):
            yield value.strip().strip(b"\"'")
