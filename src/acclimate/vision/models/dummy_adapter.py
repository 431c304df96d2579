"""An adapter without a model: for tests, and as the baseline that nothing may change."""

from __future__ import annotations

from collections.abc import Sequence

from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Entry


class DummyAdapter:
    """Finds nothing in any image, and cannot be adapted."""

    name = "dummy"

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return an entry without detections for each record."""
        return [{"image": record.image, "image_id": record.image_id, "detections": []} for record in records]
