"""The one place where foreign errors become this project's: a decoder raises nothing but DecodeError."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import msgspec

from clustermesh.errors import DecodeError, Invalid

P = ParamSpec("P")
R = TypeVar("R")


def decodes(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Marks a decoder of `what`: whatever the input is to blame for leaves it as DecodeError.

    A RecursionError is the input's fault too: the parsers recurse once per level of nesting.
    """

    def mark(decode: Callable[P, R]) -> Callable[P, R]:
        @wraps(decode)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return decode(*args, **kwargs)
            except DecodeError:
                raise
            except Invalid as e:
                raise DecodeError(e.field, e.value, e.rule) from e
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as e:
                shown = args[0][:120] if args and isinstance(args[0], (bytes, str)) else None
                raise DecodeError(what, shown, str(e)) from e

        return checked

    return mark
