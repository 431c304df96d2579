"""Not drawn yet."""

from acclimate.ui.frame import framed, heading
from acclimate.ui.visit import Visit


async def show(visit: Visit) -> None:
    with framed(visit, "/images"):
        heading("image", 1)
