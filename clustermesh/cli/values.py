"""What flags take: values that are read, and bounded, before anything is begun with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from certs.names import HOST_RULE, canonical_host, is_host
from clustermesh.duration import parse_duration
from clustermesh.errors import Invalid
from clustermesh.listen import parse_address


class Duration(click.ParamType[float]):
    """Seconds, written as Go writes a time; `parse` raises Invalid."""

    name = "DURATION"

    def __init__(self, parse: Callable[[str, str], float] = parse_duration) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return self._parse(str(value), self.name)
        except Invalid as e:
            self.fail(f"{_short(value)} {e.rule}", param, ctx)


class Patience(Duration):
    """A Duration for which a bare number is seconds, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        bare = isinstance(value, str) and value.replace(".", "", 1).isdecimal() and value.isascii()
        return super().convert(f"{value}s" if bare else value, param, ctx)


class Listener(click.ParamType[str]):
    """HOST:PORT, left as it is written; "" for nowhere."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            if value:
                parse_address(value)
        except Invalid as e:
            self.fail(f"{_short(value)} {e.rule}", param, ctx)
        return str(value)


class Host(click.ParamType[str]):
    """A name or an address that a certificate can hold, left as it is written."""

    name = "HOST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_host(canonical_host(value)):
            self.fail(f"{_short(value)} {HOST_RULE}", param, ctx)
        return str(value)


class Number(click.FloatRange):
    """A FloatRange that NaN, which is neither below nor above anything, is not in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{_short(value)} is not in the range {self._describe_range()}.", param, ctx)
        return number


@contextmanager
def named_by(**flags: str) -> Iterator[None]:
    """What is wrong with one of these fields (with _ for each blank) is wrong with the flag that it came by."""
    try:
        yield
    except Invalid as e:
        raise Invalid(flags.get(e.field.replace(" ", "_"), e.field), e.value, e.rule) from e


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


PORT: Final = click.IntRange(1, 65535)
RATE: Final = Number(0.1, 1_000_000)
"""A second."""
AT_ONCE: Final = click.IntRange(1, 1000)
