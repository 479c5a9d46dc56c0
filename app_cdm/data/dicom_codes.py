"""What a class is, in SNOMED CT: the codes by which other systems know a segment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.sr.coding import Code

SCHEMES = r"[A-Z0-9_.-]{1,16}"
MAX_CODE_LENGTH = 16
MAX_MEANING_LENGTH = 64

MORPHOLOGY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
TISSUE = Code("85756007", "SCT", "Tissue")


class CodesError(ValueError):
    """The file of codes cannot be used; the message says what is wrong in it."""


@dataclass(frozen=True)
class SegmentCode:
    """Codes of one class.

    Attributes:
        category: of "Segmentation Property Categories" (DICOM CID 7150).
        type: what it is within that.
    """

    category: Code
    type: Code


def _morphology(value: str, meaning: str) -> SegmentCode:
    return SegmentCode(MORPHOLOGY, Code(value, "SCT", meaning))


def _anatomy(value: str, meaning: str) -> SegmentCode:
    return SegmentCode(ANATOMY, Code(value, "SCT", meaning))


# What a name says nothing known of: the claim that can be made of any segment.
UNKNOWN = SegmentCode(TISSUE, TISSUE)

NEOPLASM = _morphology("108369006", "Neoplasm")

# Names in lower case, words separated by one space. Abnormalities first: "liver tumor" is a tumor.
CODES: dict[str, SegmentCode] = {
    "tumor": NEOPLASM,
    "tumour": NEOPLASM,
    "neoplasm": NEOPLASM,
    "glioma": NEOPLASM,
    "benign": _morphology("3898006", "Neoplasm, benign"),
    "malignant": _morphology("367651003", "Malignant neoplasm of primary, secondary, or uncertain origin"),
    "metastasis": _morphology("14799000", "Neoplasm, Secondary"),
    "edema": _morphology("79654002", "Edema"),
    "oedema": _morphology("79654002", "Edema"),
    "necrosis": _morphology("6574001", "Necrosis"),
    "hemorrhage": _morphology("50960005", "Hemorrhage"),
    "haemorrhage": _morphology("50960005", "Hemorrhage"),
    "cyst": _morphology("367643001", "Cyst"),
    "nodule": _morphology("27925004", "Nodule"),
    "mass": _morphology("4147007", "Mass"),
    "lesion": _morphology("52988006", "Lesion"),
    "lv": _anatomy("87878005", "Left Ventricle"),
    "left ventricle": _anatomy("87878005", "Left Ventricle"),
    "rv": _anatomy("53085002", "Right ventricle"),
    "right ventricle": _anatomy("53085002", "Right ventricle"),
    "myo": _anatomy("74281007", "Myocardium"),
    "myocardium": _anatomy("74281007", "Myocardium"),
    "brain": _anatomy("12738006", "Brain"),
    "breast": _anatomy("76752008", "Breast"),
    "heart": _anatomy("80891009", "Heart"),
    "kidney": _anatomy("64033007", "Kidney"),
    "liver": _anatomy("10200004", "Liver"),
    "lung": _anatomy("39607008", "Lung"),
    "pancreas": _anatomy("15776009", "Pancreas"),
    "prostate": _anatomy("41216001", "Prostate"),
    "spleen": _anatomy("78961009", "Spleen"),
}


def code_of(class_name: str, own: Mapping[str, SegmentCode] | None = None) -> SegmentCode:
    """The codes of a class: those of the user's file, else by its name, else by a word of it, else plain tissue.

    Args:
        class_name: as in the model; "brain_tumor" and "Brain tumor" are the same.
        own: codes of the user's, by class name; see `read_codes`.
    """
    own = own or {}
    if class_name in own:
        return own[class_name]
    words = re.findall(r"[^\W_]+", class_name.lower())
    name = " ".join(words)
    if name in CODES:
        return CODES[name]
    return next((code for known, code in CODES.items() if f" {known} " in f" {name} "), UNKNOWN)


def read_codes(path: Path) -> dict[str, SegmentCode]:
    """Reads the user's codes: `{"class": {"category": [value, scheme, meaning], "type": [value, scheme, meaning]}}`.

    Args:
        path: a JSON file; one that does not exist holds no codes.

    Raises:
        CodesError: it is damaged, or a code is not complete.
    """
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CodesError(f"{path.name} cannot be read as JSON ({error}): repair or remove it") from error
    if not isinstance(table, dict):
        raise CodesError(f'{path.name}: must be an object such as {{"tumor": {{"category": [...], "type": [...]}}}}')
    return {str(name): _read_entry(f"{path.name}: class {name!r}", entry) for name, entry in table.items()}


def _read_entry(where: str, entry: Any) -> SegmentCode:
    if not isinstance(entry, dict) or set(entry) != {"category", "type"}:
        raise CodesError(f"{where}: must hold 'category' and 'type', and nothing else")
    return SegmentCode(_read_code(f"{where}, category", entry["category"]), _read_code(f"{where}, type", entry["type"]))


def _read_code(where: str, given: Any) -> Code:
    if not isinstance(given, list) or len(given) != 3 or not all(isinstance(item, str) and item.strip() for item in given):
        raise CodesError(f'{where} = {given!r}: must be [value, scheme, meaning], such as ["108369006", "SCT", "Neoplasm"]')
    value, scheme, meaning = (item.strip() for item in given)
    if len(value) > MAX_CODE_LENGTH or len(meaning) > MAX_MEANING_LENGTH or not re.fullmatch(SCHEMES, scheme):
        raise CodesError(
            f"{where} = {given!r}: a value has up to {MAX_CODE_LENGTH} characters, a meaning up to {MAX_MEANING_LENGTH}, "
            "a scheme is a name such as SCT, DCM or 99LOCAL"
        )
    return Code(value, scheme, meaning)
