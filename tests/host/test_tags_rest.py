"""Tags over HTTP: what is written is read back, what is wrong is refused with nothing stored, the host's index is left alone."""

from __future__ import annotations

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from app_cdm.data.tags import read_tags
from lib.tags.__main__ import main
from tests.host.answers import assert_refused
from tests.host.server_process import Server

VALUES = [False, True, None, [[2, 4]], [[5, 5], [0, 2]]]


def get(url: str, path: str, **params: Any) -> Any:
    response = requests.get(f"{url}{path}", params=params, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


def put(url: str, image: str, body: object, **params: Any) -> requests.Response:
    return requests.put(f"{url}/tags/{image}", json=body, params=params, timeout=30)


def put_info(url: str, image: str, info: object) -> requests.Response:
    text = info if isinstance(info, str) else json.dumps(info)
    return requests.put(f"{url}/datastore/image/info", params={"image": image}, data={"info": text}, timeout=30)


def upload(url: str, name: str, text: str, **params: Any) -> requests.Response:
    return requests.post(f"{url}/tags/import", params=params, files={"file": (name, text)}, timeout=30)


def export(url: str) -> dict[str, dict[str, Any]]:
    return dict(get(url, "/tags/export", format="json"))


@pytest.fixture
def url(tag_server: Server) -> str:
    return tag_server.url


@pytest.fixture
def image(url: str) -> str:
    """An image without tags."""
    response = requests.post(f"{url}/tags/bulk", json={"tags": {"case0": {"edema": None, "tumor": None}}}, timeout=30)
    assert response.status_code == 200, response.text
    return "case0"


@pytest.mark.parametrize("value", VALUES)
def test_round_trip_by_the_hosts_own_route(url: str, tag_server: Server, image: str, value: object) -> None:
    index = tag_server.studies / "datastore_v2.json"
    before = index.read_bytes()
    response = put_info(url, image, {"tags": {"tumor": value}, "user": "dr ann"})
    assert response.status_code == 200, response.text
    assert get(url, "/datastore/image/info", image=image)["tags"] == {"edema": None, "tumor": value}
    assert get(url, f"/tags/{image}")["details"]["tumor"]["user"] == "dr ann"
    assert index.read_bytes() == before


@pytest.mark.parametrize("value", VALUES)
def test_round_trip_by_the_apps_routes(url: str, image: str, value: object) -> None:
    written = put(url, image, {"tags": {"tumor": value, "edema": False}, "user": "bob"}).json()
    assert written["tags"] == {"edema": False, "tumor": value}
    read = get(url, f"/tags/{image}")
    assert read["tags"] == written["tags"] and read["details"]["tumor"] == written["details"]["tumor"]
    assert (read["details"]["tumor"]["user"], read["details"]["tumor"]["provenance"]) == ("bob", "manual")
    one = put(url, image, {"value": [[1, 1]]}, **{"class": "edema"})
    assert one.json()["tags"] == {"edema": [[1, 1]]} == get(url, f"/tags/{image}", **{"class": "edema"})["tags"]


def test_other_info_takes_the_stock_path(url: str, tag_server: Server, image: str) -> None:
    assert put_info(url, image, {"note": "motion", "tags": {"edema": True}}).status_code == 200
    info = get(url, "/datastore/image/info", image=image)
    assert info["note"] == "motion" and info["tags"]["edema"] is True and info["name"] == "case0.nii.gz"
    stored = json.loads((tag_server.studies / "datastore_v2.json").read_text())["objects"][image]["image"]["info"]
    assert stored["note"] == "motion" and "tags" not in stored


REFUSED: list[tuple[str, Any, int, str]] = [
    ("unknown image", {"nope": {"tumor": True}}, 404, "unknown image 'nope'"),
    ("unknown class", {"case0": {"liver": True}}, 404, "unknown class 'liver'"),
    ("beyond the last slice", {"case0": {"tumor": [[3, 6]]}}, 400, "the image has 6 slices (0 to 5)"),
    ("beyond the only slice", {"picture": {"tumor": [[0, 1]]}}, 400, "the image has 1 slices"),
    ("beyond, along another axis", {"turned": {"tumor": [[0, 6]]}}, 400, "the image has 6 slices"),
    ("beyond, in a NRRD", {"volume": {"tumor": [[6, 6]]}}, 400, "the image has 6 slices"),
    ("negative", {"case0": {"tumor": [[-1, 2]]}}, 400, "0 <= first"),
    ("reversed", {"case0": {"tumor": [[4, 2]]}}, 400, "first <= last"),
    ("overlapping", {"case0": {"tumor": [[0, 3], [3, 4]]}}, 400, "must not overlap"),
    ("one of two bad", {"case0": {"edema": True, "tumor": [[9, 9]]}}, 400, "'tumor'"),
    ("no list of ranges", {"case0": {"tumor": [1, 2]}}, 400, "[first, last]"),
    ("empty list", {"case0": {"tumor": []}}, 400, "must be false, true, null"),
    ("text", {"case0": {"tumor": "present"}}, 400, "must be false, true, null"),
    ("number", {"case0": {"tumor": 1}}, 400, "must be false, true, null"),
    ("fractions", {"case0": {"tumor": [[0.0, 2.0]]}}, 400, "[first, last]"),
    ("truth values", {"case0": {"tumor": [[False, True]]}}, 400, "[first, last]"),
    ("no class", {"case0": {}}, 400, "at least one class"),
    ("no object", {"case0": True}, 400, "class -> tag"),
]


@pytest.mark.parametrize(("tags", "status", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refusals_store_nothing_by_any_route(url: str, image: str, tags: dict[str, Any], status: int, words: str) -> None:
    (name, by_class), before = next(iter(tags.items())), export(url)
    assert_refused(requests.post(f"{url}/tags/bulk", json={"tags": tags}, timeout=30), status, words)
    assert_refused(put(url, name, {"tags": by_class}), status, words)
    assert_refused(put_info(url, name, {"tags": by_class, "note2": 1}), status)
    assert "note2" not in get(url, "/datastore/image/info", image=image)
    assert_refused(requests.post(f"{url}/tags/bulk", json={"tags": {"case1": {"tumor": True}, **tags}}, timeout=30), status, words)
    assert export(url) == before


def test_malformed_requests(url: str, image: str) -> None:
    assert_refused(put(url, image, {"tag": {"tumor": True}}), 400, "'tag'")
    assert_refused(put(url, image, {"value": True}), 400, "'value'")
    assert_refused(put(url, image, {}, **{"class": "tumor"}), 400, "value is missing")
    assert_refused(put(url, image, [1]), 400, "JSON object")
    assert_refused(requests.put(f"{url}/tags/{image}", data="{", timeout=30), 400, "JSON")
    assert_refused(requests.put(f"{url}/tags/{image}", data="[" * 100_000, timeout=30), 400, "nested")
    assert_refused(requests.put(f"{url}/tags/{image}", data=b"\xff", timeout=30), 400, "UTF-8")
    contradiction = '{"tags": {"tumor": true, "tumor": false}}'
    assert_refused(requests.put(f"{url}/tags/{image}", data=contradiction, timeout=30), 400, "'tumor'", "twice")
    assert_refused(put_info(url, image, contradiction), 400, "'tumor'", "twice")
    assert_refused(requests.get(f"{url}/tags/{image}?class=liver", timeout=30), 404, "liver")
    for path in ("/tags/nope", "/tags/nope/history"):
        assert_refused(requests.get(f"{url}{path}", timeout=30), 404, "nope")
    assert_refused(requests.post(f"{url}/tags/nope/undo", timeout=30), 404, "nope")
    for user in ("", " ", "a\nb", "x" * 65, 7):
        assert_refused(put(url, image, {"tags": {"tumor": True}, "user": user}), 400, "user")
        assert_refused(put_info(url, image, {"tags": {"tumor": True}, "user": user}), 400, "user")
    for name in ("..", ".hidden", "a%5Cb", "x" * 300):
        assert requests.put(f"{url}/tags/{name}", json={"tags": {"tumor": True}}, timeout=30).status_code in (400, 404, 405)
    assert get(url, f"/tags/{image}")["tags"] == {"edema": None, "tumor": None}
    assert_refused(requests.get(f"{url}/tags/export?format=xml", timeout=30), 400, "xml")
    foreign = {"Origin": "http://evil.example"}
    assert_refused(requests.put(f"{url}/tags/{image}", json={"tags": {"tumor": True}}, headers=foreign, timeout=30), 403, "origin")


def test_tags_are_no_image_parameters(url: str, tag_server: Server) -> None:
    with (tag_server.studies / "case0.nii.gz").open("rb") as file:
        data = {"params": '{"tags": {"tumor": true}}'}
        response = requests.put(f"{url}/datastore/image?image=new", files={"file": file}, data=data, timeout=30)
    assert_refused(response, 400, "PUT /tags")
    assert not (tag_server.studies / "new.nii.gz").exists()


def test_undo_and_history(url: str, image: str) -> None:
    start = len(get(url, f"/tags/{image}/history")["history"])
    first = put(url, image, {"tags": {"tumor": [[1, 2]]}, "user": "ann"}).json()["action"]
    second = put(url, image, {"tags": {"tumor": False, "edema": True}, "user": "bob"}).json()["action"]
    assert_refused(requests.post(f"{url}/tags/{image}/undo?action={first}", timeout=30), 409, "not the last")
    undone = requests.post(f"{url}/tags/{image}/undo?user=cat&action={second}", timeout=30).json()
    assert undone["undone"] == second and undone["tags"] == {"edema": None, "tumor": [[1, 2]]}
    events = get(url, f"/tags/{image}/history")["history"][start:]
    told = [(event["class"], event["value"], event["user"], event["undoes"]) for event in events]
    assert told == [
        *(("tumor", [[1, 2]], "ann", None), ("tumor", False, "bob", None), ("edema", True, "bob", None)),
        *(("tumor", [[1, 2]], "cat", second), ("edema", None, "cat", second)),
    ]
    assert [event["class"] for event in get(url, f"/tags/{image}/history", **{"class": "edema"})["history"]][-2:] == ["edema", "edema"]


def test_nothing_to_undo(url: str) -> None:
    assert_refused(requests.post(f"{url}/tags/volume/undo", timeout=30), 409, "nothing to undo")


def test_export_and_import_of_both_formats(url: str, image: str, series: str, tmp_path: Path) -> None:
    tags = {"case0": {"tumor": [[1, 2], [4, 4]], "edema": False}, "picture": {"tumor": True}, series: {"tumor": [[5, 5]]}}
    assert requests.post(f"{url}/tags/bulk", json={"tags": tags, "user": "ann"}, timeout=30).status_code == 200
    for format in ("csv", "json"):
        response = requests.get(f"{url}/tags/export", params={"format": format}, timeout=30)
        path = tmp_path / f"tags.{format}"
        path.write_text(response.text)
        assert read_tags(path).tags[series] == {"tumor": ((5, 5),)}
        again = upload(url, path.name, response.text, user="eve").json()
        assert again["changed"] == 0 and again["action"] is None and again["tags"] >= 4
    (row,) = [row for row in csv.DictReader(io.StringIO(response_text(url))) if (row["image"], row["class"]) == ("case0", "tumor")]
    assert (row["tag"], row["user"], row["provenance"]) == ("1-2;4-4", "ann", "manual")
    table = "image,class,tag,patient\ncase0,tumor,absent,p1\ncase0,edema,absent,p1\npicture,edema,unknown,p2\n"
    before = export(url)
    dry = upload(url, "tags.csv", table, dry_run=True).json()
    assert (dry["images"], dry["tags"], dry["changed"], dry["action"]) == (2, 3, 1, None) and export(url) == before
    done = upload(url, "tags.csv", table, user="eve").json()
    assert done["changed"] == 1
    details = get(url, "/tags/case0")["details"]
    assert (details["tumor"]["user"], details["tumor"]["provenance"]) == ("eve", "import")
    assert details["edema"]["user"] == "ann", "an equal tag was overwritten"
    assert {row["patient"] for row in csv.DictReader(io.StringIO(response_text(url))) if row["image"] == "case0"} == {"p1"}


def response_text(url: str) -> str:
    return requests.get(f"{url}/tags/export", timeout=30).text


def test_import_of_a_table_by_slice(url: str, image: str) -> None:
    rows = [f"case{n},case{n}_mr,{z},{int(z in (2, 3))},0,{'train' if n else 'test'}" for n in range(2) for z in range(6)]
    table = "\n".join(["patient_id,volume,slice_index,has_tumor,has_edema,split", *rows])
    assert_refused(upload(url, "slices.csv", table), 400, "case0_mr", "case1_mr")
    table = table.replace("_mr", "")
    assert upload(url, "slices.csv", table, split="train").json()["images"] == 1
    assert get(url, "/tags/case1")["tags"] == {"edema": False, "tumor": [[2, 3]]}
    assert get(url, "/tags/case0")["tags"] == {"edema": None, "tumor": None}
    columns = json.dumps({"edema": "has_tumor"})
    cut = table.replace("case1", "cas").replace("case0", "cas0")
    assert upload(url, "slices.csv", cut, split="train", id_suffix="e1", columns=columns).json()["changed"] == 1
    assert get(url, "/tags/case1")["tags"] == {"edema": [[2, 3]], "tumor": [[2, 3]]}
    assert_refused(upload(url, "slices.csv", cut, id_suffix="e1", columns='{"edema": "has_nothing"}'), 400, "has_nothing")


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("tags.csv", "image,class,tag\ncase0,tumor,present\nnope,tumor,present\n", "nope"),
        ("tags.csv", "image,class,tag\ncase0,tumor,present\ncase0,tumor,absent\n", "twice"),
        ("tags.csv", "image,class,tag\ncase0,tumor,present\ncase0,edema,0-6\n", "6 slices"),
        ("tags.csv", "image,class,tag\ncase0,tumor,present\ncase0,edema,perhaps\n", "perhaps"),
        ("tags.csv", "image,class,tag\ncase0,tumor,present\ncase0,liver,present\n", "liver"),
        ("tags.csv", "a,b\n1,2\n", "has_<class>"),
        ("tags.csv", "", "no row"),
        ("slices.csv", "volume,slice_index,has_tumor\ncase0,0,1\ncase0,x,1\n", "slice"),
        ("slices.csv", "volume,slice_index,has_tumor\ncase0,0\n", ""),
        ("tags.json", '{"case0": {"tumor": true, "tumor": false}}', "twice"),
        ("tags.json", '{"case0": {"tumor": [[0, 9]]}}', "6 slices"),
        ("tags.json", "[", "tags.json"),
        ("tags.json", "{}", ""),
        ("tags.txt", "", ".csv"),
    ],
)
def test_bad_tables_are_refused_whole(url: str, image: str, name: str, text: str, word: str) -> None:
    before = export(url)
    response = upload(url, name, text)
    assert response.status_code in (400, 404), response.text
    assert_refused(response, response.status_code, word)
    assert export(url) == before


def test_summary_counts_and_info_lets_slicer_train(url: str, image: str) -> None:
    tags = {"case0": {"tumor": [[1, 2]], "edema": False}, "case2": {"tumor": True}}
    requests.post(f"{url}/tags/bulk", json={"tags": tags, "user": "ann"}, timeout=30).raise_for_status()
    summary = get(url, "/tags/summary")
    exported = export(url)
    tumor = [by_class["tumor"] for by_class in exported.values() if "tumor" in by_class]
    counts = summary["classes"]["tumor"]
    assert counts["tagged"] == len(tumor) == counts["absent"] + counts["present"]
    assert counts["present_somewhere"] == sum(value is True for value in tumor)
    assert counts["unknown"] == summary["images"] - counts["tagged"]
    assert summary["tagged"] == len(exported) and summary["users"]["ann"] >= 3 and set(summary["classes"]) == {"edema", "tumor"}
    info = get(url, "/info/")
    assert info["datastore"]["completed"] >= summary["tagged"] > 0 and info["labels"] == ["edema", "tumor"]
    assert get(url, "/datastore/")["completed"] == info["datastore"]["completed"]


def test_dicom_series_is_tagged_from_its_headers_alone(url: str, tag_server: Server, series: str) -> None:
    assert put(url, series, {"tags": {"edema": [[0, 5]]}}).json()["tags"]["edema"] == [[0, 5]]
    assert_refused(put(url, series, {"tags": {"edema": [[0, 6]]}}), 400, "6 slices")
    assert not list(tag_server.log.parent.rglob(f"cache/dicom/*/{series}*")), "the series was converted for a tag"
    requests.post(f"{url}/reload", timeout=30).raise_for_status()
    assert get(url, f"/tags/{series}")["tags"]["edema"] == [[0, 5]]


def test_the_command_imports_through_the_server(
    url: str, series: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "tags.csv"
    table.write_text(f"image,class,tag\n{series},tumor,2-4\n{image},tumor,absent\n")
    assert main(["import", str(table), "--server", url, "--user", "bea", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["dry_run"]
    assert main(["import", str(table), "--server", f"{url}/", "--user", "bea"]) == 0
    assert json.loads(capsys.readouterr().out)["tags"] == 2
    assert get(url, f"/tags/{series}")["tags"]["tumor"] == [[2, 4]]
    assert get(url, f"/tags/{image}/history")["history"][-1]["user"] == "bea"
    table.write_text(f"image,class,tag\n{series},tumor,2-9\n")
    assert main(["import", str(table), "--server", url]) == 1
    assert "the image has 6 slices" in capsys.readouterr().err
    assert main(["import", str(table), "--server", "http://127.0.0.1:9"]) == 1
    assert "no answer" in capsys.readouterr().err
    assert get(url, f"/tags/{series}")["tags"]["tumor"] == [[2, 4]]


def test_two_hundred_concurrent_writes_of_both_routes(url: str, tag_server: Server, image: str) -> None:
    index = (tag_server.studies / "datastore_v2.json").read_bytes()

    def write(number: int) -> int:
        tags = {"tumor": [[number % 6, 5]], "edema": number % 2 == 0}
        return (put if number % 2 else put_info)(url, f"case{number % 3}", {"tags": tags, "user": f"writer{number}"}).status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(write, range(200))) == {200}
    users = [event["user"] for n in range(3) for event in get(url, f"/tags/case{n}/history")["history"]]
    assert all(users.count(f"writer{number}") == 2 for number in range(200))
    assert (tag_server.studies / "datastore_v2.json").read_bytes() == index


def test_removed_image_leaves_no_tag_for_another_under_its_id(url: str, tag_server: Server) -> None:
    content = (tag_server.studies / "case0.nii.gz").read_bytes()
    requests.put(f"{url}/datastore/image?image=brief", files={"file": ("a.nii.gz", content)}, timeout=30).raise_for_status()
    assert put(url, "brief", {"tags": {"tumor": True}}).status_code == 200
    requests.delete(f"{url}/datastore/image?id=brief", timeout=30).raise_for_status()
    requests.put(f"{url}/datastore/image?image=brief", files={"file": ("a.nii.gz", content)}, timeout=30).raise_for_status()
    assert get(url, "/tags/brief")["tags"] == {"edema": None, "tumor": None}
    assert [event["value"] for event in get(url, "/tags/brief/history")["history"]] == [True, None]
    requests.delete(f"{url}/datastore/image?id=brief", timeout=30).raise_for_status()
    assert "brief" not in export(url)
