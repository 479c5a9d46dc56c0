"""`/infer` answered with a DICOM SEG, of which nothing stays on the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.responses import Response
from monailabel.endpoints import infer
from monailabel.interfaces.app import MONAILabelApp

from lib.infers.run import find_image
from lib.results.errors import ResultConflictError
from lib.server.checks import check_json_object

DICOM = "application/dicom"


def run_inference(app: MONAILabelApp, arguments: dict[str, Any]) -> Any:
    """The host's own inference, but for the output `dicom_seg`.

    Raises:
        ResultConflictError: see `answer_segmentation`.
    """
    if arguments["output"] == infer.ResultType.dicom_seg:
        return answer_segmentation(app, arguments)
    return infer.run_inference(**{name: value for name, value in arguments.items() if name != "user"})


def answer_segmentation(app: MONAILabelApp, arguments: dict[str, Any]) -> Response:
    """Segments a series of the PACS.

    The host leaves the file that it answers with in the temporary folder, and the mask too where there is nothing to answer with.

    Raises:
        ResultConflictError: the mask is empty, or the series allows no segmentation.
    """
    params, image = check_json_object("params", arguments["params"] or "{}"), arguments["image"]
    mask = Path(app.infer({**params, "model": arguments["model"], "image": image})["file"])
    try:
        series = find_image(image, app.datastore()).removesuffix(".nii.gz")
        # Looked up there, because `lib.dicomweb.segments` has put its own writer in that place.
        made = infer.nifti_to_dicom_seg(series, str(mask), params["label_info"], use_itk=True)
    finally:
        mask.unlink(missing_ok=True)
    if not made:
        raise ResultConflictError(
            f"the mask of image {image!r} is empty, and a DICOM SEG cannot be: none of its classes was found; output=image gives the mask"
        )
    try:
        content = Path(made).read_bytes()
    except FileNotFoundError as error:
        raise ResultConflictError(
            f"image {image!r}: its DICOM series allows no DICOM SEG, the server's log says why; output=image gives the mask"
        ) from error
    finally:
        Path(made).unlink(missing_ok=True)
    return Response(content, media_type=DICOM, headers={"Content-Disposition": f'attachment; filename="{Path(made).name}"'})
