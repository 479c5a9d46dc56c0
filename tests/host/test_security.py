"""What a server on a desk must withstand: paths, foreign pages, oversized bodies, and its own address."""

from __future__ import annotations

import contextlib
import http.client
import socket
from pathlib import Path

import pytest
import requests

from tests.host.answers import MODEL, assert_refused
from tests.host.server_process import Server
from tests.host.studies import head, write_nifti

PATHS = ["../x", "../../etc/passwd", "/etc/passwd", "a/../../x", "..", ".", ".hidden", "..\\x", "a\x00b", "x" * 300]


def tree(folder: Path) -> set[str]:
    """Every file below the folder that holds the studies."""
    return {str(path) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", PATHS)
def test_no_image_id_leaves_its_folder(url: str, server: Server, tmp_path: Path, name: str) -> None:
    image = write_nifti(tmp_path / "volume.nii.gz", head()).read_bytes()
    before = tree(server.studies.parent)
    upload = {"file": ("volume.nii.gz", image)}
    assert_refused(requests.put(f"{url}/datastore/image", params={"image": name}, files=upload, timeout=10), 400, "image id")
    assert_refused(requests.put(f"{url}/datastore/", params={"image": name}, files=upload, timeout=10), 400, "image id")
    label = {"label": ("volume.nii.gz", image)}
    assert_refused(requests.put(f"{url}/datastore/label", params={"image": name}, files=label, timeout=10), 400, "image id")
    for route in ("datastore/image", "datastore/image/info"):
        assert_refused(requests.get(f"{url}/{route}", params={"image": name}, timeout=10), 400, "image id")
    assert_refused(requests.delete(f"{url}/datastore/image", params={"id": name}, timeout=10), 400, "image id")
    assert_refused(requests.post(f"{url}/infer/{MODEL}", params={"image": name}, timeout=10), 400, "image id")
    assert tree(server.studies.parent) == before


@pytest.mark.parametrize("tag", ["../../x", "..", "/tmp/x", "a/b", ".hidden", "a b", "x" * 100])
def test_no_label_tag_leaves_its_folder(url: str, server: Server, tmp_path: Path, tag: str) -> None:
    label = {"label": ("volume.nii.gz", write_nifti(tmp_path / "volume.nii.gz", head()).read_bytes())}
    before = tree(server.studies.parent)
    saved = requests.put(f"{url}/datastore/label", params={"image": "case2", "tag": tag}, files=label, timeout=10)
    assert_refused(saved, 400, "label tag")
    for response in (
        requests.get(f"{url}/datastore/label", params={"label": "case2", "tag": tag}, timeout=10),
        requests.delete(f"{url}/datastore/label", params={"id": "case2", "tag": tag}, timeout=10),
        requests.put(f"{url}/datastore/label/info", params={"label": "case2", "tag": tag}, timeout=10),
        requests.post(f"{url}/batch/infer/{MODEL}", json={"label_tag": tag}, timeout=10),
    ):
        assert_refused(response, 400, "label tag")
    assert tree(server.studies.parent) == before


@pytest.mark.parametrize("key", ["image", "model", "session", "label"])
def test_params_cannot_name_another_file(url: str, key: str) -> None:
    response = requests.post(f"{url}/infer/{MODEL}?image=case0", data={"params": f'{{"{key}": "/etc/passwd"}}'}, timeout=10)
    assert_refused(response, 400, key)


def test_model_filename_in_a_request_is_not_followed(url: str) -> None:
    data = {"params": '{"model_filename": "../../evil.pt", "noise_levels": "0.5"}'}
    response = requests.post(f"{url}/infer/{MODEL}?image=case0&output=json", data=data, timeout=60)
    assert response.json()["ignored_params"] == ["model_filename"]


def test_files_of_the_working_directory_are_no_images(url: str) -> None:
    for name in ("main.py", "lib", "README.md"):
        assert_refused(requests.post(f"{url}/infer/{MODEL}", params={"image": name}, timeout=10), 404, "unknown image")


def test_uploaded_names_are_reduced_and_archives_refused(url: str, server: Server, tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "volume.nii.gz", head()).read_bytes()
    response = requests.put(f"{url}/datastore/image", files={"file": ("../../a.b/sub.01.nii.gz", image)}, timeout=10)
    assert response.json() == {"image": "sub.01"}
    assert (server.studies / "sub.01.nii.gz").is_file()
    requests.delete(f"{url}/datastore/image?id=sub.01", timeout=10)
    assert not (server.studies / "sub.01.nii.gz").exists()
    archive = requests.put(f"{url}/session/?uncompress=true", files={"files": ("volume.nii.gz", image)}, timeout=10)
    assert_refused(archive, 400, "uncompress")
    assert_refused(requests.put(f"{url}/session/", files={"files": ("..", image)}, timeout=10), 400)


def test_upload_limit_by_announced_length(servers: dict[str, Server]) -> None:
    bare = servers["bare"].url
    response = requests.put(f"{bare}/datastore/image", files={"file": ("big.nii.gz", b"\0" * (3 << 20))}, timeout=30)
    assert_refused(response, 413, "1 MiB", "--upload-limit-mb")


def test_upload_limit_while_streaming(servers: dict[str, Server]) -> None:
    """Chunked, so no length is announced."""
    head_of_form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="big.nii.gz"\r\n\r\n'
    chunks = (head_of_form if number == 0 else b"\0" * (1 << 16) for number in range(40))
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    # Cut off while it sends, a client may or may not still read the answer.
    cut_off = (BrokenPipeError, ConnectionResetError)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", servers["bare"].port, timeout=30)) as connection:
        with contextlib.suppress(*cut_off):
            connection.request("PUT", "/datastore/image", body=chunks, headers=headers, encode_chunked=True)
        with contextlib.suppress(*cut_off), contextlib.closing(connection.getresponse()) as response:
            assert response.status == 413
    assert not list(servers["bare"].studies.glob("big*"))
    assert requests.get(f"{servers['bare'].url}/info/", timeout=5).status_code == 200


def test_cors_is_closed(url: str, servers: dict[str, Server]) -> None:
    foreign = {"Origin": "http://evil.example"}
    answer = requests.get(f"{url}/info/", headers=foreign, timeout=5)
    assert "access-control-allow-origin" not in answer.headers
    preflight = foreign | {"Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in requests.options(f"{url}/infer/{MODEL}", headers=preflight, timeout=5).headers
    assert_refused(requests.post(f"{url}/activelearning/random", headers=foreign, timeout=5), 403, "--allow-origin")
    own = {"Origin": url}
    assert requests.post(f"{url}/activelearning/random", headers=own, timeout=5).status_code == 200
    allowed = {"Origin": "http://viewer.example:3000"}
    answer = requests.get(f"{servers['bare'].url}/info/", headers=allowed, timeout=5)
    assert answer.headers["access-control-allow-origin"] == "http://viewer.example:3000"
    assert "access-control-allow-origin" not in requests.get(f"{servers['bare'].url}/info/", headers=foreign, timeout=5).headers


def test_foreign_host_names_are_refused_on_loopback(url: str) -> None:
    assert_refused(requests.get(f"{url}/info/", headers={"Host": "evil.example"}, timeout=5), 403, "evil.example")


@pytest.mark.parametrize("headers", [{"Host": "["}, {"Host": "[::1"}, {"Host": "127.0.0.1.evil.example"}, {"Origin": "http://["}])
def test_addresses_that_are_none_are_refused(url: str, headers: dict[str, str]) -> None:
    assert_refused(requests.post(f"{url}/activelearning/first", headers=headers, timeout=5), 403)


def test_foreign_pages_may_link_but_not_embed(url: str) -> None:
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    for path in ("datastore/image?image=case0", "datastore/dataset"):
        assert_refused(requests.get(f"{url}/{path}", headers=embedded, timeout=5), 403, "embed")
    followed = embedded | {"Sec-Fetch-Mode": "navigate"}
    assert requests.get(f"{url}/tagging/", headers=followed, timeout=5).status_code == 200
    assert requests.get(f"{url}/datastore/image?image=case0", headers={"Sec-Fetch-Site": "same-origin"}, timeout=5).status_code == 200


def test_others_on_this_machine_see_no_uploads(server: Server) -> None:
    (own,) = server.temporary.glob("app_cdm-*")
    assert own.stat().st_mode & 0o077 == 0


def test_listens_on_loopback_only(server: Server) -> None:
    hexadecimal = f"{server.port:04X}"
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    listening = [fields[1] for fields in lines if fields[3] == "0A"]
    assert [address.split(":")[0] for address in listening if address.endswith(f":{hexadecimal}")] == ["0100007F"]
    for address in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((str(address), server.port)) != 0
