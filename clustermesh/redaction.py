"""What looks like a secret in a text, in any program's words, taken out. Pure.

A private key is one in base64, too, on however many lines, and behind a certificate: what is long and in base64 is
looked into.
"""

from __future__ import annotations

import base64
import re
from typing import Final

PATH: Final = r"/(?:etc|var|run|tmp|home|root|usr|opt|srv|mnt|proc|sys|dev|host|lib)/"
"""How a path begins that says where a secret is, and is none."""
_KEY: Final = rb"PRIVATE KEY(?: BLOCK)?-----"
_PLACE: Final = PATH.encode()
_WORDS: Final = (
    rb"(?i:pass(?:word|wd|phrase)|token|secret|credentials?|(?:api|secret|access|private|preshared)[-_.]?key|"
    rb"client-key-data|(?<![a-z])psk)"
)
_PEM: Final = re.compile(rb"-----BEGIN [A-Z ]*" + _KEY + rb".*?(?:-----END [A-Z ]*" + _KEY + rb"|$)", re.S)
_BREAK: Final = rb"(?:\\++[rn]|[\r\n])"
_ENCODED: Final = re.compile(rb"[\w+/-]{32,}+(?:(?:" + _BREAK + rb"[ \t]*+)++[\w+/-]++(?==*(?:[\s\"'\\,]|$)))*+={0,2}")
_BREAKS: Final = re.compile(_BREAK + rb"[ \t]*|=")
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_LOOKS: Final = tuple(  # what the first group holds stays, to say what was taken out
    re.compile(each)
    for each in (
        rb"()(?:(?<![\w-])|(?<=\\[nrt]))eyJ[\w-]{4,}\.[\w-]{4,}\.[\w-]*",  # a token of a service account
        rb"()cmj1\.[\w-]{8,}",  # an invitation
        rb"(?i)((?:bearer[ \t]|basic ) *)[\w.~+/=-]{7,}",
        rb"(://)[^\s\"'<>]{1,512}(?=@)",  # user and password in a URL
        rb"(?i)(authorization\\*[\"']?[ \t]*[=:][ \t]*\\*[\"']?)[^\r\n\"'\\]+",
        # a name and a value: in quotes, which may be those of a text in a text; bare; and as a flag and its argument
        rb"(" + _WORDS + rb"\\*[\"']?[ \t]*[=:][ \t]*(\\*[\"']))(?!" + _PLACE + rb")(?:(?!\2)(?:\\.|[^\\\n])){1,4096}",
        rb"(" + _WORDS + rb"[ \t]*[=:][ \t]*)(?!(?:true|false|null)\b|" + _PLACE + rb"|[{\[\"'\\])[^\s\"'\\,&;{}\[\]]+",
        rb"(?<![\w.-])(--?[\w.-]{0,64}" + _WORDS + rb" +)(?!" + _PLACE + rb"|-)[^\s\"'\\,]+",
    )
)


def redact(text: bytes, mark: bytes) -> bytes:
    """`text` with `mark` in the place of each."""
    text = _PEM.sub(mark, text)
    text = _ENCODED.sub(lambda found: mark if _hides(found[0]) else found[0], text)
    for look in _LOOKS:
        text = look.sub(lambda found: found[1] + mark, text)
    return text


def _hides(encoded: bytes) -> bool:
    """Whether a secret is in it, wherever in its four characters it began."""
    bare = _BREAKS.sub(b"", encoded).translate(_STANDARD)
    for begin in range(4):
        whole = bare[begin:] + b"=" * (-len(bare[begin:]) % 4)
        plain = base64.b64decode(whole if (len(bare) - begin) % 4 != 1 else bare[begin:-1])
        if b"PRIVATE KEY" in plain or (plain.isascii() and redact(plain, b"") != plain):
            return True
    return False
