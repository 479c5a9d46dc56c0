"""Model discovery and hot reload on a server that starts without one; what stays as MONAI Label made it."""

from __future__ import annotations

import shutil
from pathlib import Path

import requests

from tests.host.answers import METHODS, MODEL, ask_mask, assert_refused
from tests.host.server_process import Server
from tests.host.tiny_model import save_tiny_model


def offered(server: Server) -> list[str]:
    """Tasks in the order in which viewers see them; each must be complete."""
    models = requests.get(f"{server.url}/info/", timeout=30).json()["models"]
    assert all(model["labels"] and model["config"] for model in models.values()), models
    return list(models)


def test_server_without_a_model_starts_and_says_so_then_picks_one_up(servers: dict[str, Server], bare_models: Path) -> None:
    bare = servers["bare"]
    info = requests.get(f"{bare.url}/info/", timeout=5).json()
    assert info["models"] == {} and info["datastore"]["total"] == 1
    assert "starts without a model" in bare.log.read_text()
    assert_refused(requests.post(f"{bare.url}/infer/{MODEL}?image=case", timeout=10), 404, "no weights", "model_index.json")

    save_tiny_model(bare_models / "tiny", seed=0, methods=[MODEL])
    first = ask_mask(bare.url, "case")[1]["model_version"]
    assert offered(bare) == [MODEL]
    for route in ("infer/student?image=case", "batch/infer/cldf"):
        assert_refused(requests.post(f"{bare.url}/{route}", timeout=10), 404, "not offered", MODEL, first, "publish")

    save_tiny_model(bare_models / "tiny", seed=1)
    assert offered(bare) == list(METHODS), "what was trained since appears without a restart, the most accurate first"
    replies = [ask_mask(bare.url, "case", model=method)[1] for method in METHODS]
    assert [reply["method"] for reply in replies] == list(METHODS)
    second = replies[0]["model_version"]
    assert first != second == replies[-1]["model_version"]

    weights = next((bare_models / "tiny" / "unet").glob("*.safetensors"))
    weights.write_bytes(b"broken")
    assert ask_mask(bare.url, "case")[1]["model_version"] == second, "a broken publication must not stop the service"
    assert offered(bare) == list(METHODS)
    shutil.rmtree(bare_models / "tiny")
    assert_refused(requests.post(f"{bare.url}/infer/{MODEL}?image=case", timeout=10), 404, "no weights")


def test_start_page_schema_and_logs_are_the_hosts(url: str) -> None:
    assert requests.get(f"{url}/", timeout=5).status_code == 200
    paths = requests.get(f"{url}/openapi.json", timeout=5).json()["paths"]
    assert {"/info/", "/infer/{model}", "/datastore/label", "/activelearning/{strategy}", "/batch/infer/{model}"} <= set(paths)
    assert requests.get(f"{url}/logs/?lines=5&html=false", timeout=5).status_code == 200
    assert requests.get(f"{url}/ohif/", timeout=5).status_code == 200
