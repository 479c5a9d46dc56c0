"""What makes a tag wrong; everything is found out before anything is stored."""

from __future__ import annotations

from collections.abc import Mapping

from app_cdm.data.tags import TagError
from app_cdm.data.volume import VolumeError
from lib.server.checks import check_image_id
from lib.server.errors import LIST_IMAGES, UnknownNameError, UnusableRequestError
from lib.tags.images import Images, count_slices
from lib.tags.record import StoredTag, TagsByImage, read_value

MAX_REPORTED = 10
NO_CLASSES = "no class is known yet: start the server with --classes NAME,NAME,... or publish a model"

PROBLEMS = (TagError, VolumeError, UnknownNameError, UnusableRequestError)


def check_tags(given: object, images: Images, class_names: tuple[str, ...]) -> TagsByImage:
    """Checks tags as they come from JSON.

    Args:
        given: image -> class -> tag.
        images: the images there are.
        class_names: the classes there are.

    Returns:
        The same, typed.

    Raises:
        TagError: a tag is malformed, contradicts itself, or reaches beyond the last slice. Of several problems each is named.
        UnknownNameError: an image or a class does not exist.
        VolumeError: the header of an image with slice ranges cannot be read.
    """
    if not isinstance(given, Mapping) or not given:
        raise TagError("tags: must be an object of image -> class -> tag, with at least one image")
    missing = set(images.missing(str(image) for image, by_class in given.items() if not _takes_back(by_class)))
    missing |= set(images.missing((str(image) for image, by_class in given.items() if _takes_back(by_class)), with_left_out=True))
    problems: list[Exception] = []
    checked: TagsByImage = {}
    for image, by_class in given.items():
        try:
            checked[str(image)] = _check_image(str(image), by_class, images, class_names, str(image) in missing)
        except PROBLEMS as problem:
            problems.append(problem)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        more = f"; and {len(problems) - MAX_REPORTED} more" if len(problems) > MAX_REPORTED else ""
        raise TagError(f"{len(problems)} problems, nothing stored: " + "; ".join(map(str, problems[:MAX_REPORTED])) + more)
    return checked


def _takes_back(by_class: object) -> bool:
    return isinstance(by_class, Mapping) and all(value is None for value in by_class.values())


def _check_image(image: str, by_class: object, images: Images, class_names: tuple[str, ...], is_missing: bool) -> dict[str, StoredTag]:
    check_image_id(image)
    if is_missing:
        raise UnknownNameError("image", image, hint=LIST_IMAGES)
    if not isinstance(by_class, Mapping) or not by_class:
        raise TagError(f"image {image!r}: tags must be an object of class -> tag, with at least one class")
    checked: dict[str, StoredTag] = {}
    for name, value in by_class.items():
        check_class(name, class_names)
        try:
            checked[name] = read_value(value)
        except TagError as error:
            raise TagError(f"image {image!r}, class {name!r}: {error}") from error
    _check_slices(image, checked, images)
    return checked


def _check_slices(image: str, tags: Mapping[str, StoredTag], images: Images) -> None:
    if not any(isinstance(value, list) for value in tags.values()):
        return  # nothing to compare with: a series of a PACS need not be fetched for "absent"
    num_slices = count_slices(images, image)
    for name, value in tags.items():
        for first, last in value if isinstance(value, list) else ():
            if last >= num_slices:
                message = f"slice range [{first}, {last}]: the image has {num_slices} slices (0 to {num_slices - 1})"
                raise TagError(f"image {image!r}, class {name!r}: {message}")


def check_class(name: str, class_names: tuple[str, ...]) -> None:
    """Requires a class that can be tagged.

    Raises:
        UnknownNameError: there is no such class.
    """
    if name not in class_names:
        raise UnknownNameError("class", name, class_names, hint="" if class_names else NO_CLASSES)
