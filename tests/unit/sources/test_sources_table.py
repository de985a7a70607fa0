"""Files folded into one table: broken documents, half-written files, and objects given twice."""

from __future__ import annotations

import kube
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.sources.objects import Object, Ref
from clustermesh.sources.table import EMPTY, Manifest, ObjectTable, read_manifest, unreadable

CART, DB = Ref("Service", "shop", "cart"), Ref("Service", "shop", "db")
BROKEN = "---\na: [}\n"


def manifest(text: str, file: str = "a.yaml", before: Manifest = EMPTY) -> Manifest:
    return read_manifest(file, text.encode(), before)


def both() -> str:
    return kube.dump(kube.service("cart"), kube.service("db"))


def test_a_broken_document_costs_only_itself() -> None:
    table = ObjectTable()
    text = kube.dump(kube.service("cart")) + BROKEN + "---\n" + kube.dump(kube.service("db"))
    assert table.put("a.yaml", manifest(text)) == {CART, DB}
    (problem,) = table.problems()
    assert (problem.file, problem.document) == ("a.yaml", 2)
    assert str(problem).startswith("a.yaml, document 2: line 15: 'a: [}'")


def test_a_half_written_file_keeps_what_it_last_held_until_it_is_whole_again() -> None:
    table = ObjectTable()
    table.put("a.yaml", manifest(both()))
    torn = both()[:-40] + ' {"'
    assert table.put("a.yaml", manifest(torn)) == set()
    assert set(table.objects) == {CART, DB}
    assert [problem.file for problem in table.problems()] == ["a.yaml"]
    assert table.put("a.yaml", manifest(kube.dump(kube.service("cart")))) == {DB}
    assert set(table.objects) == {CART}
    assert list(table.problems()) == []


def test_good_documents_of_a_broken_file_count_at_once() -> None:
    table = ObjectTable()
    table.put("a.yaml", manifest(both()))
    changed = kube.dump(kube.service("cart", clusterIP="10.96.0.99")) + BROKEN
    assert table.put("a.yaml", manifest(changed)) == {CART}
    assert table.objects[CART].spec.cluster_ip == "10.96.0.99"  # type: ignore[union-attr]
    assert DB in table.objects


def test_a_file_that_cannot_be_read_keeps_what_it_held() -> None:
    table = ObjectTable()
    table.put("a.yaml", manifest(both()))
    assert table.put("a.yaml", unreadable("a.yaml", "Permission denied")) == set()
    assert table.complete
    assert [str(problem) for problem in table.problems()] == ["a.yaml: Permission denied"]


def test_the_table_is_complete_once_every_file_was_whole_once() -> None:
    table = ObjectTable()
    table.put("a.yaml", manifest(both()))
    table.put("b.yaml", manifest(BROKEN))
    assert not table.complete
    table.put("b.yaml", manifest(BROKEN + "# still\n"))
    assert not table.complete
    table.put("b.yaml", manifest("# nothing\n"))
    assert table.complete
    table.put("b.yaml", manifest(BROKEN))
    assert table.complete


def test_a_removed_broken_file_holds_nothing_up() -> None:
    table = ObjectTable()
    table.put("b.yaml", manifest(BROKEN))
    table.remove("b.yaml")
    assert table.complete
    assert list(table.problems()) == []


def test_of_two_files_with_one_object_the_first_by_path_counts() -> None:
    table = ObjectTable()
    table.put("b.yaml", manifest(kube.dump(kube.service("cart", clusterIP="10.96.0.2")), "b.yaml"))
    table.put("a.yaml", manifest(kube.dump(kube.service("db"), kube.service("cart", clusterIP="10.96.0.1"))))
    assert table.objects[CART].spec.cluster_ip == "10.96.0.1"  # type: ignore[union-attr]
    assert [str(problem) for problem in table.problems()] == [
        "b.yaml, document 1: Service shop/cart: is given in a.yaml already, which counts"
    ]
    assert table.locate(CART) == ("a.yaml", 2)
    assert table.remove("a.yaml") == {CART, DB}
    assert table.objects[CART].spec.cluster_ip == "10.96.0.2"  # type: ignore[union-attr]
    assert list(table.problems()) == []


def test_of_two_documents_in_one_file_the_first_counts() -> None:
    table = ObjectTable()
    text = kube.dump(kube.service("cart", clusterIP="10.96.0.1"), kube.service("cart", clusterIP="10.96.0.2"))
    table.put("a.yaml", manifest(text))
    assert table.objects[CART].spec.cluster_ip == "10.96.0.1"  # type: ignore[union-attr]
    assert [str(p) for p in table.problems()] == [
        "a.yaml, document 2: Service shop/cart: is given twice; document 1 counts"
    ]


def test_a_text_met_again_is_not_parsed_again_and_changes_nothing() -> None:
    first = manifest(both())
    second = manifest("# moved\n---\n" + both(), before=first)
    table = ObjectTable()
    table.put("a.yaml", first)
    assert second.objects[DB].value is first.objects[DB].value
    assert table.put("a.yaml", second) == set()


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\x80"])
def test_bytes_that_are_no_text_are_one_problem(data: bytes) -> None:
    found = read_manifest("a.yaml", data)
    assert found.broken
    assert ["must be UTF-8 text" in problem.sentence for problem in found.problems] == [True]


def test_json_files_hold_one_document() -> None:
    import json

    found = read_manifest("a.json", json.dumps({"kind": "List", "items": [kube.service("cart")]}).encode())
    assert set(found.objects) == {CART}
    assert read_manifest("a.json", b"{").broken


# -- a stupid twin: all files at once, from nothing -------------------------------------------------------------------

_FILES = ("a.yaml", "b.yaml", "c.yaml")
_CONTENTS = st.lists(st.tuples(st.sampled_from(["cart", "db", "web"]), st.integers(1, 3)), max_size=4)
_STEPS = st.lists(st.tuples(st.sampled_from(_FILES), st.none() | _CONTENTS), max_size=12)


def _text(content: list[tuple[str, int]]) -> str:
    return kube.dump(*(kube.service(name, clusterIP=f"10.96.0.{ip}") for name, ip in content)) if content else ""


@given(_STEPS)
def test_any_history_ends_as_if_only_its_last_files_had_been_read(steps: list[tuple[str, object]]) -> None:
    table, seen, last = ObjectTable(), dict[Ref, Object](), dict[str, str]()
    for file, content in steps:
        if content is None:
            last.pop(file, None)
            changed = table.remove(file)
        else:
            last[file] = _text(content)  # type: ignore[arg-type]
            changed = table.put(file, manifest(last[file], file))
        for ref in changed:
            seen.pop(ref, None)
            if ref in table.objects:
                seen[ref] = table.objects[ref]
    twin: dict[Ref, Object] = {}
    for file in sorted(last):
        for ref, entry in manifest(last[file], file).objects.items():
            twin.setdefault(ref, entry.value)
    assert table.objects == twin
    assert seen == twin, "put and remove tell every change"


def test_a_file_name_that_is_no_utf8_can_be_told() -> None:
    table = ObjectTable()
    table.put("bad\udcff.yaml", unreadable("bad\udcff.yaml", "cannot be read"))
    table.put("a\udcff.yaml", manifest(kube.dump(kube.service("cart")), "a\udcff.yaml"))
    table.put("b\udcff.yaml", manifest(kube.dump(kube.service("cart")), "b\udcff.yaml"))
    said = "\n".join(map(str, table.problems())).encode().decode()
    assert "bad\\udcff.yaml: cannot be read" in said
    assert "is given in a\\udcff.yaml already" in said
