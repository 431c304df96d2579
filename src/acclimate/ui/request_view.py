"""Not drawn yet."""

from acclimate.ui.frame import framed, heading
from acclimate.ui.visit import Visit


async def show(visit: Visit, request_id: str) -> None:
    with framed(visit, "/watch"):
        heading(request_id, 1)
