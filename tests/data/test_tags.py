"""Tag tables: every format says the same, the hash ignores order, and what is malformed is refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_cdm.data.tags import ABSENT, PRESENT, UNKNOWN, TagError, TagTable, TagValue, parse_tag, read_tags, slice_states


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("given_tag", "expected"),
    [
        (False, False),
        (True, True),
        (None, None),
        ([[8, 15]], ((8, 15),)),
        ([[20, 20], [8, 15]], ((8, 15), (20, 20))),
        (((0, 0),), ((0, 0),)),
        ("absent", False),
        (" Present ", True),
        ("unknown", None),
        ("", None),
        ("8-15;20-20", ((8, 15), (20, 20))),
        ("20-20;8-15", ((8, 15), (20, 20))),
        ("3-4;5-6", ((3, 4), (5, 6))),
    ],
)
def test_one_tag(given_tag: object, expected: TagValue) -> None:
    assert parse_tag(given_tag) == expected


@pytest.mark.parametrize(
    "malformed",
    [1, 0.5, {}, [], [8, 15], [[8]], [[15, 8]], [[-1, 3]], [[1.0, 2.0]], [[True, True]], [["1", "2"]], [[1, 5], [5, 9]], [[1, 9], [2, 3]],
     "yes", "8", "15-8", "8-15;", "8-15-20", "-1-3", "1-5;5-9", "a-b"],
)  # fmt: skip
def test_malformed_tag_is_refused(malformed: object) -> None:
    with pytest.raises(TagError, match="must"):
        parse_tag(malformed)


def test_states_of_slices() -> None:
    assert slice_states(((1, 2), (4, 4)), 6).tolist() == [ABSENT, PRESENT, PRESENT, ABSENT, PRESENT, ABSENT]
    assert slice_states(False, 2).tolist() == [ABSENT, ABSENT]
    assert slice_states(None, 2).tolist() == [UNKNOWN, UNKNOWN]
    assert slice_states(True, 2).tolist() == [UNKNOWN, UNKNOWN]  # present somewhere: no single slice is known
    assert slice_states(True, 1).tolist() == [PRESENT]  # the only slice there is
    assert slice_states(((3, 3),), 4).dtype == np.int8


def test_range_beyond_the_image_names_image_and_range() -> None:
    table = TagTable(("tumor",), {"case_7": {"tumor": ((2, 9),)}}, {"case_7": "case_7"})
    with pytest.raises(TagError, match=r"image 'case_7': slice range \[2, 9\]: the image has 9 slices \(0 to 8\)"):
        table.states("case_7", 9)


def test_every_format_gives_the_same_table(tmp_path: Path) -> None:
    as_json = tmp_path / "tags.json"
    as_json.write_text(json.dumps({"a": {"edema": False, "tumor": [[1, 2], [4, 4]]}, "b": {"tumor": "0-0", "edema": [[3, 4]]}}))
    as_rows = write(
        tmp_path / "rows.csv", "image,class,tag", "b,tumor,0-0", "a,edema,absent", "a,tumor,1-2;4-4", "b,edema,3-4"
    )  # fmt: skip
    states = {"a": [(0, 0), (0, 1), (0, 1), (0, 0), (0, 1)], "b": [(0, 1), (0, 0), (0, 0), (1, 0), (1, 0)]}
    lines = [f"{image},{index},{e},{t}" for image, rows in states.items() for index, (e, t) in enumerate(rows)]
    as_slices = write(tmp_path / "slices.csv", "volume,slice_index,has_edema,has_tumor", *lines)
    tables = [read_tags(path) for path in (as_json, as_rows, as_slices)]
    for table in tables:
        assert table.class_names == ("edema", "tumor")
        assert table.tags == tables[0].tags
        assert table.digest() == tables[0].digest()
        for image, expected in states.items():
            assert table.states(image, 5).tolist() == [list(row) for row in expected]


def test_rows_of_slices_may_come_in_any_order(tmp_path: Path) -> None:
    lines = [f"p1,{index},{int(index in (3, 4, 9))}" for index in range(12)]
    random.Random(0).shuffle(lines)
    table = read_tags(write(tmp_path / "t.csv", "patient_id,slice_index,has_lesion", *lines))
    assert table.tags == {"p1": {"lesion": ((3, 4), (9, 9))}}


def test_a_table_by_slice_holds_every_slice(tmp_path: Path) -> None:
    """A slice without a row would count as one without the class."""
    head = "patient_id,slice_index,has_lesion,doubtful"
    for indices in ((0, 1, 3), (1, 2, 3)):
        gap = write(tmp_path / "gap.csv", head, *(f"p,{index},1,0" for index in indices))
        with pytest.raises(TagError, match=rf"image 'p': no row for slice {2 if indices[0] == 0 else 0} \(slices count from 0\)"):
            read_tags(gap)
    whole = write(tmp_path / "t.csv", head, "p,0,1,0", "p,1,1,1", "p,2,0,0")
    with pytest.raises(TagError, match="rows of slices cannot be left out"):
        read_tags(whole, exclude="doubtful")
    table = read_tags(whole)
    assert table.states("p", 3).tolist() == [[PRESENT], [PRESENT], [ABSENT]]
    with pytest.raises(TagError, match="image 'p': has 4 slices, and the tags are of 3"):
        table.states("p", 4)


def test_a_byte_order_mark_of_a_spreadsheet_is_no_part_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("patient_id,volume,slice_index,has_lesion\np,a,0,1\np,b,0,0\n", encoding="utf-8-sig")
    assert read_tags(path).patients == {"a": "p", "b": "p"}


def test_blank_lines_and_columns_without_a_name_do_not_count(tmp_path: Path) -> None:
    table = read_tags(write(tmp_path / "t.csv", "image,class,tag,,", "", "a,x,present,,", "", "b,x,,,"))
    assert table.tags == {"a": {"x": True}, "b": {"x": None}}


def test_table_by_image_says_present_somewhere(tmp_path: Path) -> None:
    table = read_tags(write(tmp_path / "t.csv", "image_id,group_id,has_lesion", "x,g1,1", "y,g1,0", "z,g2,"))
    assert table.tags == {"x": {"lesion": True}, "y": {"lesion": False}, "z": {}}
    assert table.class_names == ("lesion",)
    assert table.patients == {"x": "g1", "y": "g1", "z": "g2"}
    assert table.states("x", 1).tolist() == [[PRESENT]]
    assert table.states("x", 3).tolist() == [[UNKNOWN]] * 3
    assert table.states("y", 3).tolist() == [[ABSENT]] * 3
    assert table.states("z", 1).tolist() == [[UNKNOWN]]


def test_split_columns_patients_and_words(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv", "volume,patient_id,slice_index,split,rv,has_lv",
        "v1,p1,0,train,True,0", "v1,p1,1,train,false,1", "v2,p1,0,train,0,1", "v3,p2,0,test,1,1",
    )  # fmt: skip
    table = read_tags(path, {"right": "rv", "left": "has_lv"}, split="train")
    assert table.tags == {"v1": {"right": ((0, 0),), "left": ((1, 1),)}, "v2": {"right": False, "left": ((0, 0),)}}
    assert table.patients == {"v1": "p1", "v2": "p1"}
    assert read_tags(path).class_names == ("lv",)
    assert list(read_tags(path, split="test").tags) == ["v3"]


def test_patients_of_tag_rows_and_subset(tmp_path: Path) -> None:
    table = read_tags(write(tmp_path / "t.csv", "image,class,tag,patient", "a,x,present,p", "b,x,absent,p", "c,x,,"))
    assert table.patients == {"a": "p", "b": "p", "c": "c"}
    part = table.subset(["c", "a"])
    assert list(part.tags) == ["c", "a"]
    assert part.patients == {"c": "c", "a": "p"}
    assert part.digest() != table.digest()


def test_class_without_a_tag_is_unknown() -> None:
    table = TagTable(("a", "b"), {"x": {"b": False}}, {"x": "x"})
    assert table.states("x", 2).tolist() == [[UNKNOWN, ABSENT]] * 2


TAGS = st.one_of(st.booleans(), st.none(), st.just(((1, 4), (6, 6))), st.just(((2, 2),)))


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.dictionaries(st.sampled_from("xyz"), TAGS, min_size=1), min_size=1))
def test_hash_ignores_order_and_nothing_else(tags: dict[str, dict[str, TagValue]]) -> None:
    table = TagTable(("x", "y", "z"), tags, {})
    turned = TagTable(("x", "y", "z"), {i: dict(reversed(t.items())) for i, t in reversed(tags.items())}, {})
    assert table.digest() == turned.digest()
    image = next(iter(tags))
    name = next(iter(tags[image]))
    changed = {**tags, image: {**tags[image], name: ((0, 7),)}}
    assert TagTable(("x", "y", "z"), changed, {}).digest() != table.digest()
    renamed = {(f"{i}!" if i == image else i): t for i, t in tags.items()}
    assert TagTable(("x", "y", "z"), renamed, {}).digest() != table.digest()
    assert TagTable(("x", "y", "w"), tags, {}).digest() != table.digest()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,class,tag"], "no row"),
        (["image,class,tag", "a,x,present", "a,x,absent"], "image 'a', class 'x': tagged twice"),
        (["image,class,tag", "a,x,maybe"], "image 'a', class 'x': tag 'maybe'"),
        (["patient_id,slice_index,lesion", "p,0,1"], "no tag column"),
        (["patient_id,slice_index,has_lesion", "p,0,2"], "image 'p', column 'has_lesion': '2' is neither 0 nor 1"),
        (["patient_id,slice_index,has_lesion", "p,0,"], "neither 0 nor 1"),
        (["patient_id,slice_index,has_lesion", "p,0"], "t.csv, line 2: has fewer or more cells than the 3 of the header"),
        (["image,class,tag", "a,x,present", "", "b,x"], "t.csv, line 4: has fewer or more cells"),
        (["image,class,tag", "a,x,present,p"], "t.csv, line 2: has fewer or more cells"),
        (["image_id,has_x,has_x", "a,0,1"], r"t.csv, line 1: columns \['has_x'\] are there twice"),
        (["image,class,tag,split", "a,x,present,train", "b,x,present"], "t.csv, line 3: has fewer or more cells"),
        (["patient_id,slice_index,has_lesion", "p,0,1", "p,99999999999,1"], "image 'p': no row for slice 1 "),
        (["patient_id,slice_index,has_lesion", "p,0,1", "p,0,0"], "image 'p', class 'lesion': tagged twice on slice 0"),
        (["patient_id,slice_index,has_lesion", "p,x,1"], "slice_index 'x'"),
        (["patient_id,slice_index,has_lesion", "p,-1,1"], "slice_index '-1'"),
        (["patient_id,slice_index,has_lesion", "p,,1"], "slice_index ''"),
        (["patient_id,slice_index,has_lesion", ",0,1"], "image ''"),
        (["image_id,has_lesion", "a,1", "a,0"], "image 'a', class 'lesion': tagged twice"),
    ],
)
def test_malformed_csv_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(TagError, match=message):
        read_tags(write(tmp_path / "t.csv", *lines))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "t.json: is not JSON"),
        ("[]", "image -> class -> tag"),
        ("{}", "image -> class -> tag"),
        ('{"a": true}', "image -> class -> tag"),
        ('{"a": {"tumor": [[4, 2]]}}', r"image 'a', class 'tumor': slice range \[4, 2\]"),
        ('{"a": {"tumor": 1}}', "image 'a', class 'tumor': tag 1"),
    ],
)
def test_malformed_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(TagError, match=message):
        read_tags(path)


def test_missing_split_and_column_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "patient_id,slice_index,split,has_lesion", "p,0,train,1")
    with pytest.raises(TagError, match="no row of split 'val'"):
        read_tags(path, split="val")
    with pytest.raises(TagError, match=r"\['has_stroke'\]; the columns are"):
        read_tags(path, {"stroke": "has_stroke"})


def test_rows_that_contradict_themselves_are_left_out_and_a_column_of_words_gives_classes(tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    path.write_text("image_id,group_id,split,class,label_conflict\na,g1,train,benign,0\nb,g2,train,malignant,1\nc,g3,train,normal,\n")
    columns = {"benign": "class=benign", "malignant": "class=malignant"}
    found = read_tags(path, columns, "train", exclude="label_conflict")
    assert found.tags == {"a": {"benign": True, "malignant": False}, "c": {"benign": False, "malignant": False}}
    assert found.patients == {"a": "g1", "c": "g3"}
    with pytest.raises(TagError, match=r"column 'conflict' says which rows to leave out; it must be there"):
        read_tags(path, columns, exclude="conflict")
    with pytest.raises(TagError, match=r"column 'class' says which rows to leave out; it must be there, and hold 1, 0 or nothing"):
        read_tags(path, columns, exclude="class")
    with pytest.raises(TagError, match=r"no tag column \['kind'\]"):
        read_tags(path, {"benign": "kind=benign"})
