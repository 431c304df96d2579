"""Images that can be tried: those of the package, those of a folder, and those that a visitor uploads."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from PIL import Image, ImageOps, UnidentifiedImageError

from acclimate.errors import ConfigError, DataError
from acclimate.output_files import open_output
from acclimate.ui.allowance import Allowance
from acclimate.vision.data.records import Dataset, load_dataset
from acclimate.vision.models.loading import AdapterOptions

#: Formats that uploads are decoded from; their decoders are the ones that browsers' files need.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP")
#: Most pixels of an upload: a photograph of 24 megapixels fits.
MOST_PIXELS: Final = 25_000_000
#: Most images of a run on this page; larger ones belong on the command line.
MOST_IMAGES: Final = 200
#: Uploads are stored no larger than this: networks see fewer pixels anyway.
_STORED_SIDE: Final = 1024
_SCENES: Final = 64

Sample = Literal["digits", "scenes"]
SAMPLES: Final[dict[Sample, str]] = {
    "digits": "Handwritten digits, with labels",
    "scenes": "Generated scenes with plates, with boxes and poses",
}


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images to predict.

    Attributes:
        source: the folder, or the COCO file that names them.
        truth: labels or annotations; None where there are none.
        source_images: images that the model was trained on, for methods that compare with them; None where unknown.
    """

    source: Path
    truth: Path | None = None
    source_images: Path | None = None

    def load(self, most: int) -> Dataset:
        """Return the first images, at most ``most``.

        Raises:
            DataError: there are none.
        """
        return load_dataset(self.source, max_images=min(most, MOST_IMAGES))


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A model for images that this page offers.

    Attributes:
        name: in addresses; ``title``: in lists.
        options: of its adapter; None for the digits network, which is trained when it is first wanted.
        sample: the images of the package that it is for; None takes any.
    """

    name: str
    title: str
    options: AdapterOptions | None
    sample: Sample | None


def models_of(given: Sequence[str]) -> dict[str, ImageModel]:
    """Return the models that can be tried, by name.

    Args:
        given: further ones, each ``transformers:FOLDER_OR_NAME`` or ``torch:PACKAGE.MODULE:FACTORY``.

    Raises:
        ConfigError: one has another form.
    """
    found = {
        "digits": ImageModel("digits", "Digits classifier (small network with BatchNorm)", None, "digits"),
        "rtdetr_pose": ImageModel(
            "rtdetr_pose", "Detector with poses (RT-DETR)", AdapterOptions(adapter="rtdetr_pose"), "scenes"
        ),
    }
    for text in given:
        adapter, _, model = text.partition(":")
        if adapter not in ("transformers", "torch") or not model:
            raise ConfigError(f"image model {text!r}: write transformers:FOLDER or torch:PACKAGE.MODULE:FACTORY")
        name = Path(model).name if adapter == "transformers" else model
        found[name] = ImageModel(name, name, AdapterOptions(adapter=adapter, model=model), None)
    return found


class ImageSets:
    """The images and small networks that the server has made, in a folder that is removed when it ends."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="acclimate-page-")
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """The temporary folder."""
        return Path(self._folder.name)

    def sample(self, name: Sample) -> ImageSet:
        """Return images of the package, which are written when they are first wanted."""
        with self._lock:
            return self._digits() if name == "digits" else self._scenes()

    def digits_options(self) -> AdapterOptions:
        """Return the digits network, which is trained when it is first wanted: about ten seconds."""
        from acclimate.vision.demos import digits

        checkpoint = self.folder / "digits.safetensors"
        with self._lock:
            if not checkpoint.exists():
                digits.train(checkpoint)
        factory = "acclimate.vision.demos.digits:digit_network"
        return AdapterOptions(adapter="torch", model=factory, checkpoint=str(checkpoint))

    def close(self) -> None:
        """Remove everything."""
        self._folder.cleanup()

    def _digits(self) -> ImageSet:
        from acclimate.vision.demos import digits

        folder = self.folder / "digits"
        labels = folder / "labels.json"
        if not labels.exists():
            digits.write_source_images(folder)
            digits.write_test_images(folder)
        return ImageSet(folder / "images", labels, folder / "source")

    def _scenes(self) -> ImageSet:
        from acclimate.vision.demos.pose_scenes.dataset import write_dataset

        folder = self.folder / "scenes"
        annotations = folder / "annotations.json"
        if not annotations.exists():
            write_dataset(folder, images=_SCENES, split="test", seed=0)
        return ImageSet(annotations, annotations)


class Uploads:
    """The images that one visitor has uploaded; removed when the page is closed.

    Args:
        folder: below which they are stored, under names of this package's own.
        allowance: of bytes, for all pages of one visitor together; None sets no limit.
        owner: of the images, whose allowance it is.
    """

    def __init__(self, folder: Path, *, allowance: Allowance | None = None, owner: str = "") -> None:
        self._allowance, self._owner, self._bytes = allowance, owner, 0
        self._folder = TemporaryDirectory(prefix="upload-", dir=folder)
        # Several files arrive at once, and the page may be closed while one is decoded.
        self._lock = threading.Lock()
        self._is_closed = False
        self.count = 0

    def add(self, content: bytes) -> None:
        """Decode an image and store it again as PNG, so that nothing but its pixels is kept.

        Raises:
            DataError: it is no image of a known format, has too many pixels, there are enough already, or the page was
                closed.
        """
        with self._lock:
            self._add(content)

    def _add(self, content: bytes) -> None:
        if self._is_closed:
            raise DataError("the page was closed before the image was stored")
        if self.count >= MOST_IMAGES:
            raise DataError(f"{self.count} images were uploaded, and no more are taken")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise DataError(
                        f"the image has {image.width * image.height / 1e6:.0f} million pixels; at most "
                        f"{MOST_PIXELS / 1e6:.0f} million are taken"
                    )
                image.draft("RGB", (_STORED_SIDE, _STORED_SIDE))
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except DataError:
            raise
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"this is no image in one of the formats {', '.join(FORMATS)}") from error
        upright.thumbnail((_STORED_SIDE, _STORED_SIDE))
        encoded = io.BytesIO()
        upright.save(encoded, "PNG")
        self._take(len(encoded.getvalue()))
        with open_output(self.path / f"{self.count:04d}.png") as file:
            file.write(encoded.getvalue())
        self.count += 1

    def _take(self, size: int) -> None:
        if self._allowance is not None:
            self._allowance.take(self._owner, size)
        self._bytes += size

    @property
    def path(self) -> Path:
        """The folder of the images."""
        return Path(self._folder.name)

    def as_set(self) -> ImageSet:
        """Return the images.

        Raises:
            DataError: there are none.
        """
        if not self.count:
            raise DataError("no image was uploaded yet; choose some, or take those of the package")
        return ImageSet(self.path)

    def close(self) -> None:
        """Remove the images."""
        # Before the lock is there: what waits for it is not decoded any more.
        self._is_closed = True
        with self._lock:
            self._folder.cleanup()
            if self._allowance is not None:
                self._allowance.give_back(self._owner, self._bytes)
            self._bytes = 0
