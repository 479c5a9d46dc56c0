"""What each stock route requires of its arguments: known names, safe new names, readable uploads."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag

from app_cdm.data.volume import VolumeError
from lib.infers.batch import STOP_KEY
from lib.server.checks import (
    LABEL_SUFFIXES,
    STORED_SUFFIXES,
    UPLOAD_SUFFIXES,
    check_image_id,
    check_json_object,
    check_plain_name,
    check_reserved,
    check_tag,
    check_upload,
)
from lib.server.errors import LIST_IMAGES, UnknownNameError, UnusableRequestError
from lib.server.users import client_of, user_of
from lib.tags.submission import TAGS, Submission, acting_user, submission

Arguments = dict[str, Any]
Rule = Callable[[MONAILabelApp, Arguments], None]

MAX_LOG_LINES = 100_000


def known_image(app: MONAILabelApp, name: str) -> None:
    """Requires an image of the datastore; a PACS is asked later, when the image is fetched."""
    check_image_id(name)
    why = getattr(app.datastore(), "left_out", {}).get(name)
    if why is not None:
        raise VolumeError(f"DICOM series {name} is left out: {why}")
    if not isinstance(app.datastore(), DICOMWebDatastore) and not app.datastore().has_image(name):
        raise UnknownNameError("image", name, hint=LIST_IMAGES)


def known_label(app: MONAILabelApp, name: str, tag: str) -> None:
    """Requires an image that has a label under this tag."""
    known_image(app, name)
    check_tag(tag)
    tags = app.datastore().get_labels_by_image_id(name)
    if not isinstance(app.datastore(), DICOMWebDatastore) and tag not in tags:
        raise UnknownNameError(f"label tag of image {name!r}", tag, tags)


def known_task(kind: str, name: str, tasks: dict[str, Any]) -> None:
    """Requires one of the app's tasks."""
    check_plain_name(kind, name)
    if name not in tasks:
        raise UnknownNameError(kind, name, tasks)


def known_session(app: MONAILabelApp, name: str) -> None:
    """Requires a session that has not expired."""
    check_plain_name("session", name)
    sessions = app.sessions()
    if sessions is None or sessions.get_session(name, update_ts=False) is None:
        raise UnknownNameError("session", name, hint="it has expired or never was; create one with PUT /session/")


def add_image(app: MONAILabelApp, arguments: Arguments) -> None:
    """A new image: a safe id, a readable kind of file; not where images are the series of a PACS, which an upload would stand in for."""
    if isinstance(app.datastore(), DICOMWebDatastore):
        raise UnusableRequestError("the images of this server are the series of its DICOMweb server: store it in the PACS")
    stem = check_upload(arguments["file"], STORED_SUFFIXES)
    arguments["image"] = arguments["image"] or stem
    check_image_id(arguments["image"])
    check_json_object("params", arguments["params"])


def image(app: MONAILabelApp, arguments: Arguments) -> None:
    """Reading or describing an image."""
    known_image(app, arguments["image"])
    algorithm = (arguments.get("check_sum") or "SHA256:").split(":")[0]
    if ":" in (arguments.get("check_sum") or "") and algorithm not in ("SHA256", "SHA512", "MD5"):
        raise UnusableRequestError(f"check_sum {arguments['check_sum']!r}: begin with SHA256:, SHA512: or MD5:")
    check_json_object("info", arguments.get("info") or "{}")


def image_info(app: MONAILabelApp, arguments: Arguments) -> None:
    """Describing an image; tags in it are checked by the datastore, which needs to know whose they are."""
    image(app, arguments)
    info = check_json_object("info", arguments["info"])
    if TAGS in info:
        acting_user.set(user_of(arguments["user"], info.get("user")))


def remove_image(app: MONAILabelApp, arguments: Arguments) -> None:
    """Removing an image."""
    known_image(app, arguments["id"])
    acting_user.set(user_of(arguments["user"]))


def save_label(app: MONAILabelApp, arguments: Arguments) -> None:
    """A label for a known image, under a safe tag."""
    known_image(app, arguments["image"])
    arguments["tag"] = arguments["tag"] or DefaultLabelTag.FINAL.value
    check_tag(arguments["tag"])
    params = check_json_object("params", arguments["params"])
    user = client_of(arguments["user"], params.get("client_id"))
    submission.set(Submission(arguments["tag"], params.get("label_info"), user))
    # OHIF sends bare voxels, which only a DICOMweb datastore knows how to place.
    extra = (".bin",) if isinstance(app.datastore(), DICOMWebDatastore) else ()
    check_upload(arguments["label"], LABEL_SUFFIXES + extra)


def label(app: MONAILabelApp, arguments: Arguments) -> None:
    """Reading, describing or removing a label."""
    known_label(app, arguments.get("label") or arguments.get("image") or arguments.get("id") or "", arguments["tag"])
    for field in ("info", "params"):
        check_json_object(field, arguments.get(field) or "{}")


def infer(app: MONAILabelApp, arguments: Arguments) -> None:
    """One inference: known model and image, parameters that are JSON and leave the URL alone."""
    known_task("model", arguments["model"], app._infers)
    params = check_json_object("params", arguments["params"] or "{}")
    check_reserved(params)
    if params.get("label_tag"):
        check_tag(str(params["label_tag"]))
    if arguments.get("label") is not None:
        raise UnusableRequestError(f"model {arguments['model']!r} works on the image alone: send no label")
    if arguments.get("output") == "dicom_seg":
        dicom_seg(app, arguments, params)
    if arguments["session_id"]:
        known_session(app, arguments["session_id"])
    elif arguments["file"] is not None:
        check_upload(arguments["file"], UPLOAD_SUFFIXES)
    elif arguments["image"]:
        known_image(app, arguments["image"])
    else:
        raise UnusableRequestError("no image: name one with ?image=, or send it as the form's file")


def dicom_seg(app: MONAILabelApp, arguments: Arguments, params: Arguments) -> None:
    """A mask as DICOM SEG: an image of the PACS, and names of its segments, before anything is computed."""
    if not isinstance(app.datastore(), DICOMWebDatastore):
        raise UnusableRequestError("output dicom_seg needs a DICOMweb server as studies: ask for output=image")
    if arguments["session_id"] or arguments["file"] is not None or not arguments["image"]:
        raise UnusableRequestError(
            "output dicom_seg needs a series of the DICOMweb server, which the segmentation refers to: name it with ?image="
        )
    segments = params.get("label_info")
    if not isinstance(segments, list) or not segments or not all(map(_is_segment, segments)):
        raise UnusableRequestError(
            'output dicom_seg needs the names of the segments in params, in the order of their numbers: {"label_info": [{"name": "tumor"}]}'
        )


def _is_segment(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name", ""), str)


def batch(app: MONAILabelApp, arguments: Arguments) -> None:
    """A batch: known model, parameters that its task accepts, a safe tag."""
    known_task("model", arguments["model"], app._infers)
    params = arguments["params"] = dict(arguments["params"] or {})
    check_reserved(params)
    # The stock default is an enumeration member, whose text is not the tag.
    params["label_tag"] = str(getattr(params.get("label_tag"), "value", params.get("label_tag") or DefaultLabelTag.ORIGINAL.value))
    check_tag(params["label_tag"])
    params.pop(STOP_KEY, None)  # which is the server's own
    limit = params.get("max_batch_size") or 0
    if not str(limit).isdecimal():
        raise UnusableRequestError(f"max_batch_size {limit!r}: must be a whole number of images, or 0 for all")
    app._infers[arguments["model"]].check(params)


def train(app: MONAILabelApp, arguments: Arguments) -> None:
    """Training of a known trainer, in the background; its options are checked where it is started, see `lib/server/training.py`."""
    known_task("trainer", arguments["model"], app._trainers)
    check_reserved(arguments["params"] or {})
    in_background(arguments)


def all_training(app: MONAILabelApp, arguments: Arguments) -> None:
    """Training of every trainer: options for all, and objects with those of known trainers."""
    params = arguments["params"] or {}
    check_reserved(params)
    for name, value in params.items():
        if isinstance(value, dict):
            known_task("trainer", name, app._trainers)
            check_reserved(value)
        elif name in app._trainers:
            raise UnusableRequestError(f"options of trainer {name!r}: send an object such as {{}}")
    in_background(arguments)


def in_background(arguments: Arguments) -> None:
    """Refuses a training inside the request, or behind another."""
    for name in ("run_sync", "enqueue"):
        if arguments.get(name):
            raise UnusableRequestError(
                f"{name} is not offered: leave it out; one training runs at a time, in the background, and GET /train/ says how far it is"
            )


def scoring(app: MONAILabelApp, arguments: Arguments) -> None:
    """A known scoring method that has what it needs."""
    known_task("scoring method", arguments["method"], app._scoring_methods)
    app._scoring_methods[arguments["method"]].check()


def all_scoring(app: MONAILabelApp, arguments: Arguments) -> None:
    """Scoring methods that have what they need."""
    for method in app._scoring_methods.values():
        method.check()


def strategy(app: MONAILabelApp, arguments: Arguments) -> None:
    """A known strategy, which the body does not replace."""
    known_task("strategy", arguments["strategy"], app._strategies)
    if "strategy" in (arguments["params"] or {}):
        raise UnusableRequestError("params must not hold 'strategy': name it in the URL")


def session(app: MONAILabelApp, arguments: Arguments) -> None:
    """A session that exists."""
    known_session(app, arguments["session_id"])


def any_session(app: MONAILabelApp, arguments: Arguments) -> None:
    """A session that may have expired."""
    check_plain_name("session", arguments["session_id"])


def new_session(app: MONAILabelApp, arguments: Arguments) -> None:
    """Files for a session; never an archive, which the host would unpack unchecked."""
    if arguments["uncompress"]:
        raise UnusableRequestError("uncompress is not offered: send the image, or every file of one DICOM series, as it is")
    for upload in arguments["files"]:
        check_upload(upload, UPLOAD_SUFFIXES)
    # Slices of several folders may have one name, of which the host would keep the last.
    times = Counter(upload.filename for upload in arguments["files"])
    for number, upload in enumerate(arguments["files"]):
        if times[upload.filename] > 1:
            upload.filename = f"{number:06d}_{upload.filename}"


def log_lines(app: MONAILabelApp, arguments: Arguments) -> None:
    """Some lines of the log."""
    if not 1 <= arguments["lines"] <= MAX_LOG_LINES:
        raise UnusableRequestError(f"lines {arguments['lines']}: must be in [1, {MAX_LOG_LINES}]")


def gpu(app: MONAILabelApp, arguments: Arguments) -> None:
    """The GPU's state, by the tool that comes with its driver."""
    if shutil.which("nvidia-smi") is None:
        raise UnknownNameError("tool", "nvidia-smi", hint="this server has no NVIDIA GPU")


def model_file(app: MONAILabelApp, arguments: Arguments) -> None:
    """Models are published on the server, not over the network."""
    known_task("model", arguments["model"], app._infers)
    raise UnusableRequestError(
        "models are folders: publish one by putting it into the server's model folder; it is picked up without a restart"
    )


def whole_slide(app: MONAILabelApp, arguments: Arguments) -> None:
    """Whole-slide inference, which this app does not have."""
    raise UnknownNameError("whole-slide model", arguments["model"], [])


RULES: dict[str, Rule] = {
    "datastore.api_add_image": add_image,
    "datastore.api_remove_image": remove_image,
    "datastore.api_check_image": image,
    "datastore.api_download_image": image,
    "datastore.api_get_image_info": image,
    "datastore.api_put_image_info": image_info,
    "datastore.api_save_label": save_label,
    "datastore.api_remove_label": label,
    "datastore.api_check_label": label,
    "datastore.api_download_label": label,
    "datastore.api_get_label_info": label,
    "datastore.api_put_label_info": label,
    "datastore.api_update_label_info": label,
    "infer.api_run_inference": infer,
    "batch_infer.api_run": batch,
    "train.api_run": all_training,
    "train.api_run_model": train,
    "scoring.api_run": all_scoring,
    "scoring.api_run_method": scoring,
    "activelearning.api_sample": strategy,
    "logs.api_get_logs": log_lines,
    "logs.gpu_info": gpu,
    "session.api_get_session": any_session,
    "session.api_remove_session": session,
    "session.api_create_session": new_session,
    "model.api_download_model": model_file,
    "model.api_model_info": model_file,
    "model.api_update_model": model_file,
    "model.api_delete_model": model_file,
    "wsi_infer.api_run_wsi_inference": whole_slide,
    "wsi_infer.api_run_wsi_v2_inference": whole_slide,
}
