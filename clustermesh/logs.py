"""How agents, API servers and mirrors log: on stderr, for people or for machines, and in neither form a secret.

A line of JSON has `time`, `level`, `program`, `logger` and `message`, what it is about (`cluster`, `kind`, `key`, as
far as whoever logged said so with `extra=about(...)`), and with an unforeseen error its `traceback`.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import msgspec

from clustermesh.address import BITS, Address, text
from clustermesh.errors import printable
from clustermesh.redaction import redact

FORMATS: Final = ("text", "json")
_HIDDEN: Final = b"[hidden]"


def set_up(form: str, program: str) -> None:
    """Log in this form, one of FORMATS, from now on; where somebody has set it up before, as that one did."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(program) if form == "json" else Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def about(cluster: str = "", kind: str = "", key: object = None) -> dict[str, Any]:
    """What a line is about, as `extra` of a call that logs."""
    fields = {"cluster": cluster, "kind": kind, "key": "" if key is None else spelled(key)}
    return {"about": {name: value for name, value in fields.items() if value}}


def spelled(key: object) -> str:
    """A name in a table, as people write it."""
    if isinstance(key, bytes):
        return text(Address(key)) if len(key) == BITS // 8 else key.decode(errors="replace")
    return "/".join(map(str, key)) if isinstance(key, tuple) else str(key)


def hide(line: str) -> str:
    """`line` without what nobody may read who reads a log."""
    return redact(line.encode(errors="replace"), _HIDDEN).decode(errors="replace")


class Text(logging.Formatter):
    """One line for a person; a traceback has more."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """What a peer says must not look like lines of ours."""
        return printable(hide(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        return hide(super().formatException(ei))


class JsonLines(logging.Formatter):
    """One JSON object on each line."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "program": self._program,
            "logger": record.name,
            "message": hide(record.getMessage()),
            **{name: hide(value) for name, value in getattr(record, "about", {}).items()},
        }
        if record.exc_info:
            line["traceback"] = hide(self.formatException(record.exc_info))
        return msgspec.json.encode({name: _clean(value) for name, value in line.items()}).decode()


def _moment(created: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(created))}.{int(created % 1 * 1000):03}Z"


def _clean(value: str) -> str:
    """A path of the file system need not be Unicode."""
    return value.encode(errors="replace").decode()
