"""3D Slicer's module without Slicer: its own request code runs, what it does with Qt and the scene is done by hand beside it."""

from __future__ import annotations

import ast
import logging
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import SimpleITK as sitk

SECTIONS = {"infer": "models", "train": "trainers", "activelearning": "strategies", "scoring": "scoring"}


def module_source(client: ModuleType) -> str:
    """The source of the module that the wheel ships beside its client."""
    assert client.__file__ is not None
    return (Path(client.__file__).parent.parent / "MONAILabel.py").read_text()


def requests_made(source: str) -> set[str]:
    """Names of the requests that the module's buttons make: `self.logic.<name>(...)`, as far as the logic sends them."""
    tree = ast.parse(source)
    called = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "self.logic"
    }
    methods = [node for node in _logic_class(tree).body if isinstance(node, ast.FunctionDef)]
    sending = {method.name for method in methods if "self._client()" in ast.unparse(method)}
    return called & sending


def make_logic(client: ModuleType, url: str, folder: Path) -> Any:
    """The module's own `MONAILabelLogic`, with the client that it ships and no login dialog."""
    code = compile(ast.Module(body=[_logic_class(ast.parse(module_source(client)))], type_ignores=[]), "MONAILabel.py", "exec")

    class Base:
        """In place of Slicer's `ScriptedLoadableModuleLogic`, of which it uses nothing."""

    names: dict[str, Any] = {"ScriptedLoadableModuleLogic": Base, "MONAILabelClient": client.MONAILabelClient, "logging": logging}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, names | {"shutil": __import__("shutil")}, names)
    return names["MONAILabelLogic"](tmpdir=str(folder), server_url=url, client_id="dr ann")


def _logic_class(tree: ast.Module) -> ast.ClassDef:
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "MONAILabelLogic")


def table_params(info: dict[str, Any], section: str, name: str, **typed: str | bool) -> dict[str, Any]:
    """What the option table sends: shown as text, read back by the type of the value, as `invalidateConfigTable` does.

    Args:
        info: the reply to `/info/`.
        section: `infer`, `train` or `activelearning`.
        name: the task.
        typed: what the user changed; the text in a field, the choice in a combo box, the state of a checkbox.
    """
    sent = {}
    for key, value in info[SECTIONS[section]][name].get("config", {}).items():
        if isinstance(value, list):
            sent[key] = typed.get(key, value[0])
            assert sent[key] in value and isinstance(sent[key], str), "a combo box shows text"
        elif isinstance(value, bool):
            sent[key] = bool(typed.get(key, value))
        else:
            text = str(typed.get(key, str(value) if value else ""))
            empty, kind = (0, int) if isinstance(value, int) else (0.0, float) if isinstance(value, float) else ("", str)
            sent[key] = kind(text) if text else empty
    return sent


def import_mask(file: str, labels: list[str], image: sitk.Image) -> dict[str, np.ndarray]:
    """What the segments hold after the module has imported a mask: segment number i is where the mask is i + 1.

    The file is read by SimpleITK, as the module does; it must lie on the grid of the image.

    Returns:
        Segment name -> `(Z, Y, X)` boolean.
    """
    mask = sitk.ReadImage(file)
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == image.GetSize()
    for ours, theirs in (
        (mask.GetOrigin(), image.GetOrigin()),
        (mask.GetSpacing(), image.GetSpacing()),
        (mask.GetDirection(), image.GetDirection()),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    voxels = sitk.GetArrayFromImage(mask)
    assert voxels.max() <= len(labels)
    return {label: voxels == number for number, label in enumerate(labels, start=1)}


def label_order(params: dict[str, Any], model: dict[str, Any]) -> list[str]:
    """The segments in the order in which the module imports them."""
    labels = params.get("label_names") or model["labels"]
    return [name for name, _ in sorted(labels.items(), key=lambda label: label[1])]


def export_segments(segments: dict[str, np.ndarray], image: sitk.Image, file: Path) -> dict[str, Any]:
    """Writes segments as Submit Label does, on the grid of the image, and returns what it sends beside the file."""
    voxels = np.zeros(sitk.GetArrayViewFromImage(image).shape, dtype=np.uint8)
    for number, where in enumerate(segments.values(), start=1):
        voxels[where] = number
    label = sitk.GetImageFromArray(voxels)
    label.CopyInformation(image)
    sitk.WriteImage(label, str(file), True)
    return {"label_info": [{"name": name, "idx": number} for number, name in enumerate(segments, start=1)]}
