"""YAML is read as Kubernetes reads it; a broken document costs itself, a hostile one costs an error and no memory."""

from __future__ import annotations

import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.errors import DecodeError
from clustermesh.sources import documents
from clustermesh.sources.documents import Document, parse_json, parse_yaml, split_documents


def read(text: str) -> list[object]:
    return [parse_yaml(document) for document in split_documents(text)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80", 80),
        ("-1", -1),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 15),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("-.Inf", float("-inf")),
        ("true", True),
        ("Yes", True),
        ("off", False),
        ("~", None),
        ("null", None),
        ('""', ""),
        ('"80"', "80"),
        ("'true'", "true"),
        ("!!str 80", "80"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("12:30:45", "12:30:45"),  # YAML 1.1 and PyYAML: the number 45045
        ("2026-01-01", "2026-01-01"),  # PyYAML: a date
        ("y", "y"),
        ("1_000", "1_000"),
        ("nan", "nan"),
        ("-x", "-x"),
    ],
)
def test_plain_text_becomes_what_kubernetes_makes_of_it(text: str, value: object) -> None:
    assert read(f"key: {text}") == [{"key": value}]


def test_documents_are_numbered_as_a_reader_counts_them() -> None:
    text = "# only a comment\n---\na: 1\n---\n\n---  # b\nb: |\n  x\n...\n--- c\n"
    found = list(split_documents(text))
    assert [(d.number, parse_yaml(d)) for d in found] == [(1, {"a": 1}), (2, {"b": "x\n"}), (3, "c")]


def test_a_fault_names_its_line_in_the_file() -> None:
    good, bad = split_documents("a: 1\n---\nb: 2\nc: [}\n")
    assert parse_yaml(good) == {"a": 1}
    with pytest.raises(DecodeError, match=r"^line 4: 'c: \[\}'"):
        parse_yaml(bad)


def test_anchors_aliases_and_merge_keys_work() -> None:
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: {<<: [*b, {z: 4, x: 9}]}\nsame: *b\n"
    base = {"x": 1, "y": 2}
    assert read(text) == [{"base": base, "one": {"x": 1, "y": 3}, "two": {"x": 1, "y": 2, "z": 4}, "same": base}]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: {b: 1, b: 2}", "'b' is given twice"),
        ("a: *nobody", "no anchor before it"),
        ("a: &x [*x]", "no anchor before it"),
        ("? [a]\n: b", "plain text"),
        ("a: !!python/object:os.system x", "tag"),
        ("a: !!int x", "tag"),
        ("a: !!set {b}", "tag"),
        ("<<: 5", "bring in mappings"),
        ("a: 1\n...\nb: 2", "document start"),
        ("[" * 100 + "]" * 100, "deeper than 64"),
        ("a: " + "9" * 5000, "4300"),
        ("a: \ud800", "surrogates"),
        ("a: \x00", "control characters"),
    ],
)
def test_what_kubernetes_would_not_take_is_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(DecodeError, match=rule):
        read(text)


def test_a_billion_laughs_are_counted_and_not_laughed() -> None:
    lines = ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(DecodeError, match=f"more than {documents.MAX_NODES} values"):
        read("\n".join(lines))


@given(st.text(alphabet=st.sampled_from("ab:- \n[]{}&*!|>'\"#%@,?<~.0123\t"), max_size=80))
def test_garbage_raises_nothing_but_decode_error(text: str) -> None:
    for document in split_documents(text):
        with contextlib.suppress(DecodeError):
            parse_yaml(document)


@given(st.binary(max_size=60))
def test_garbage_in_json_raises_nothing_but_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        parse_json(data)


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]))
_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "N"]))  # nothing that anybody takes for a number
_SCALARS = st.none() | st.booleans() | st.integers()


def _trees(texts: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    keys = st.text(alphabet="abcxyz./-", min_size=1)
    return st.recursive(_SCALARS | texts, lambda inner: st.lists(inner) | st.dictionaries(keys, inner))


class _Quoting(yaml.SafeDumper):
    """Writes every text in quotes, as whoever writes for other readers than himself must."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


@given(_trees(_TEXT))
def test_what_is_written_with_quotes_is_read_back(tree: object) -> None:
    assert parse_yaml(Document(1, 0, yaml.dump(tree, Dumper=_Quoting))) == tree


@given(_trees(_WORDS))
def test_what_pyyaml_writes_is_read_back_where_no_text_looks_like_a_number(tree: object) -> None:
    assert parse_yaml(Document(1, 0, yaml.safe_dump(tree))) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [("0E0", 0.0), ("1e3", 1000.0), ("0o7", 7), ("0x1", "0x1"), ("1_0", "1_0"), ("1:2", "1:2"), ("00x", "00x")],
)
def test_a_text_that_pyyaml_writes_bare_is_read_as_kubernetes_does(text: str, value: object) -> None:
    """PyYAML quotes what itself would take for a number, and only that: the rest is a number to Kubernetes."""
    assert parse_yaml(Document(1, 0, yaml.safe_dump({"key": text}))) == {"key": value}


@given(st.lists(st.dictionaries(st.sampled_from("abc"), _SCALARS | _TEXT, min_size=1), max_size=4))
def test_each_document_is_read_as_if_it_stood_alone(trees: list[object]) -> None:
    assert read(yaml.dump_all(trees, Dumper=_Quoting)) == trees
