"""Class ids in predictions: a data set's category ids where it has any, otherwise the model's class indices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from acclimate.errors import DataError


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Maps a model's class indices to the ids that are written.

    Attributes:
        ids: id by class index; classes without an id are not written. None writes the index itself.
        warnings: which classes are not written, and whether the ids are other numbers than those from 0.
    """

    ids: Mapping[int, int] | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def by_name(cls, model_labels: Mapping[int, str] | None, categories: Mapping[int, str]) -> LabelMap:
        """Match a model's labels to a data set's categories by name, ignoring case.

        Raises:
            DataError: a category of the data set has no label of that name in the model.
        """
        if not categories:
            return cls()
        if not model_labels:
            # Category ids need not be class indices, so without names they cannot be matched.
            raise DataError(
                "the data set has category names and the model has no labels to match them to; "
                "give the model class names, or use a list of images instead of a COCO file"
            )
        names = [name.strip().lower() for name in categories.values()]
        if len(set(names)) < len(names):
            raise DataError(f"two categories of the data set are called {max(names, key=names.count)!r}")
        index_by_name = {name.strip().lower(): index for index, name in model_labels.items()}
        missing = [name for name in categories.values() if name.strip().lower() not in index_by_name]
        if missing:
            known = ", ".join(sorted(model_labels.values())[:8])
            raise DataError(
                f"the model has no label for {len(missing)} of the data set's categories (first: {missing[0]!r}); "
                f"its labels are {known}{', ...' if len(model_labels) > 8 else ''}"
            )
        ids = {index_by_name[name.strip().lower()]: category for category, name in categories.items()}
        notes = []
        if unused := len(model_labels) - len(ids):
            notes.append(f"{unused} of the model's labels are not in the data set and are not written")
        if set(ids.values()) != set(range(len(ids))):
            notes.append(
                f"class_id holds the data set's category ids ({min(ids.values())} to {max(ids.values())}), which are "
                f"not the numbers from 0 to {len(ids) - 1}"
            )
        return cls(ids, tuple(notes))

    def written(self, index: int) -> int | None:
        """Return the id of the class ``index``, or None if the class is not written."""
        return index if self.ids is None else self.ids.get(index)
