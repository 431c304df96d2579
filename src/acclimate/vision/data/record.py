"""One image to predict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes in a file.

    Attributes:
        archive: path of the file.
        offset: of the first byte; ``size``: how many there are.
    """

    archive: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """One image to predict.

    Attributes:
        image: path of the file, as it appears in predictions.
        image_id: the id in the COCO file, or the position in the folder or list, counted from 1.
        intrinsics: ``(fx, fy, cx, cy)`` in pixels, where a COCO file gives them.
        declared_size: ``(width, height)`` in pixels that a COCO file states; None where it states none.
        archived: where the bytes are of a file in an archive; ``image`` is the archive's path and the name in it.
    """

    image: str
    image_id: int
    intrinsics: tuple[float, float, float, float] | None = None
    declared_size: tuple[int, int] | None = None
    archived: Span | None = None
