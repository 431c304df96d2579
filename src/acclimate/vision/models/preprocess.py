"""Preparing images as a network was trained on them, and mapping its boxes back to the image.

:func:`resize`, :func:`crop` and :func:`letterbox` return a :class:`Preprocess`. :func:`of_module` reads the settings
that other libraries store with their models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acclimate.core.views import PixelRange
from acclimate.errors import ConfigError
from acclimate.vision.data.corruptions import Uint8Image

Size = tuple[int, int]
"""Width and height in pixels."""
Channels = tuple[float, float, float]
"""One value for each channel, in the order in which the network gets them."""
Fit = Literal["keep", "resize", "crop", "letterbox"]

_FILTERS: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}
_GRAY: Final = 114


@dataclass(frozen=True, slots=True)
class BoxMap:
    """Maps fractions of the network's input to fractions of the image: ``scale * fraction + offset`` in x and y."""

    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def corners(self, boxes: Tensor) -> Tensor:
        """Return boxes ``(..., 4)`` as ``(x0, y0, x1, y1)`` fractions of the image."""
        if self == BoxMap():
            return boxes
        return boxes * boxes.new_tensor(self.scale * 2) + boxes.new_tensor(self.offset * 2)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image as the network takes it: ``tensor`` ``(C, H, W)``, and how its boxes are mapped back to the image."""

    tensor: Tensor
    boxes: BoxMap = BoxMap()


Callback = Callable[[Uint8Image], Tensor | Prepared]
"""A function of the user that prepares one image ``(H, W, 3)``, RGB, uint8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How images are brought to the size, the channel order and the range of values that a network was trained on.

    Attributes:
        fit: ``keep``: the image's own size; ``resize``: to ``size``, whatever the shape of the image; ``crop``: the
            shorter side to ``shorter``, then the centre of ``size`` is cut out, and missing borders are black;
            ``letterbox``: as large as fits into ``size``, centred, with borders of the colour ``fill``.
        size: of the network's input; None only with ``keep``.
        shorter: length in pixels of the shorter side before cropping.
        channels: ``rgb`` or ``bgr``.
        highest: the value of white before normalisation: 1 or 255.
        mean, std: subtracted from and divided by, for each channel of the network, in units of ``highest``; None leaves
            the values as they are.
        interpolation: ``bilinear``, ``bicubic``, ``nearest`` or ``lanczos``.
        fill: the colour of a letterbox's borders, 0 to 255.

    Raises:
        ConfigError: a value is unknown or out of range, or a size is missing.
    """

    fit: Fit = "keep"
    size: Size | None = None
    shorter: int | None = None
    channels: Literal["rgb", "bgr"] = "rgb"
    highest: float = 1.0
    mean: Channels | None = None
    std: Channels | None = None
    interpolation: str = "bilinear"
    fill: int = _GRAY

    def __post_init__(self) -> None:
        if self.fit not in ("keep", "resize", "crop", "letterbox"):
            raise ConfigError(f"fit must be keep, resize, crop or letterbox, got {self.fit!r}")
        if (self.size is None) != (self.fit == "keep"):
            raise ConfigError(f"fit {self.fit!r} {'needs a' if self.size is None else 'takes no'} size (width, height)")
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"width and height must be at least 1 pixel, got {self.size}")
        if (self.shorter is None) != (self.fit != "crop"):
            raise ConfigError(f"shorter is the length before cropping; it belongs to fit 'crop', got {self.shorter}")
        if self.shorter is not None and self.shorter < 1:
            raise ConfigError(f"shorter must be at least 1 pixel, got {self.shorter}")
        if self.channels not in ("rgb", "bgr"):
            raise ConfigError(f"channels must be rgb or bgr, got {self.channels!r}")
        if self.highest not in (1, 255):
            raise ConfigError(f"highest is the value of white, 1 or 255, got {self.highest}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError(f"give mean and std together, or neither; got mean {self.mean} and std {self.std}")
        if self.mean is not None and self.std is not None and (len(self.mean) != 3 or len(self.std) != 3):
            raise ConfigError(f"mean and std have one value for each of three channels, got {self.mean} and {self.std}")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ConfigError(f"std must be positive, got {self.std}")
        if self.interpolation not in _FILTERS:
            raise ConfigError(f"interpolation must be one of {', '.join(_FILTERS)}, got {self.interpolation!r}")
        if not 0 <= self.fill <= 255:
            raise ConfigError(f"fill must lie between 0 and 255, got {self.fill}")

    def __call__(self, pixels: Uint8Image) -> Prepared:
        """Return one image ``(H, W, 3)``, RGB, uint8, as the network takes it."""
        placed, boxes = self._placed(pixels)
        if self.channels == "bgr":
            placed = placed[..., ::-1]
        tensor = torch.from_numpy(np.array(placed)).permute(2, 0, 1).float()
        if self.highest == 1:
            tensor.div_(255)
        if self.mean is not None and self.std is not None:
            tensor = (tensor - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]
        return Prepared(tensor, boxes)

    @property
    def pixel_range(self) -> PixelRange:
        """The values of black and white in the network's input."""
        if self.mean is None or self.std is None:
            return (0.0, float(self.highest))
        pairs = tuple(zip(self.mean, self.std, strict=True))
        return tuple(-m / s for m, s in pairs), tuple((self.highest - m) / s for m, s in pairs)

    def _placed(self, pixels: Uint8Image) -> tuple[Uint8Image, BoxMap]:
        height, width = pixels.shape[:2]
        if self.size is None:
            return pixels, BoxMap()
        if self.fit == "resize":
            return self._resized(pixels, self.size), BoxMap()
        if self.fit == "crop" and self.shorter is not None:
            factor = self.shorter / min(width, height)
        else:
            factor = min(self.size[0] / width, self.size[1] / height)
        inner = max(1, round(width * factor)), max(1, round(height * factor))
        resized = self._resized(pixels, inner)
        # Where the image begins in the network's input; negative where it is cut off.
        start = tuple(math.floor((outer - own) / 2) for outer, own in zip(self.size, inner, strict=True))
        canvas = np.full((self.size[1], self.size[0], 3), self.fill if self.fit == "letterbox" else 0, dtype=np.uint8)
        (x, y), (columns, rows) = start, inner
        to_y, to_x = slice(max(0, y), min(self.size[1], y + rows)), slice(max(0, x), min(self.size[0], x + columns))
        canvas[to_y, to_x] = resized[to_y.start - y : to_y.stop - y, to_x.start - x : to_x.stop - x]
        boxes = BoxMap(scale=(self.size[0] / columns, self.size[1] / rows), offset=(-x / columns, -y / rows))
        return canvas, boxes

    def _resized(self, pixels: Uint8Image, size: Size) -> Uint8Image:
        if size == (pixels.shape[1], pixels.shape[0]):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(size, _FILTERS[self.interpolation]))


def resize(size: Size, **settings: Any) -> Preprocess:
    """Return the preparation that resizes images to ``size``; ``settings``: further fields of :class:`Preprocess`."""
    return Preprocess(fit="resize", size=size, **settings)


def crop(size: Size, *, shorter: int, **settings: Any) -> Preprocess:
    """Return the preparation that resizes the shorter side and cuts out the centre; see :class:`Preprocess`."""
    return Preprocess(fit="crop", size=size, shorter=shorter, **settings)


def letterbox(size: Size, **settings: Any) -> Preprocess:
    """Return the preparation that keeps the shape of images and adds borders; see :class:`Preprocess`."""
    return Preprocess(fit="letterbox", size=size, **settings)


def of_module(module: Any) -> tuple[Preprocess | Callback, str] | None:
    """Return the preparation that is stored with a module, and in words where it was found; None where there is none.

    Read are an image processor of transformers (an attribute ``image_processor`` or ``processor``) and the settings of
    timm (``pretrained_cfg`` or ``default_cfg``).

    Raises:
        ConfigError: the settings cannot be used.
    """
    for name in ("image_processor", "processor"):
        processor = getattr(module, name, None)
        if is_image_processor(processor):
            return ProcessorCall(processor), f"the model's {name}"
    for name in ("pretrained_cfg", "default_cfg"):
        settings = getattr(module, name, None)
        if settings is not None and not isinstance(settings, Mapping):
            settings = vars(settings) if hasattr(settings, "__dict__") else None
        if isinstance(settings, Mapping) and settings.get("input_size"):
            return _of_timm(settings), f"the model's {name}"
    return None


def is_image_processor(value: Any) -> bool:
    """Return whether an object looks like an image processor of transformers."""
    return callable(value) and hasattr(value, "preprocess") and hasattr(value, "do_normalize")


@dataclass(frozen=True, slots=True)
class ProcessorCall:
    """Prepares one image with an image processor of transformers.

    Attributes:
        processor: the image processor.
    """

    processor: Any

    def __call__(self, pixels: Uint8Image) -> Tensor:
        """Return one image ``(H, W, 3)``, RGB, uint8, as the processor prepares it.

        Raises:
            ConfigError: the processor returns something else than ``pixel_values`` ``(B, C, H, W)``.
        """
        values = self.processor(images=[pixels], return_tensors="pt")["pixel_values"]
        if not isinstance(values, Tensor) or values.dim() != 4:
            raise ConfigError(
                f"{type(self.processor).__name__} does not return pixel_values (B, C, H, W); give another preprocess"
            )
        return values[0]


def moves_boxes(processor: Any) -> bool:
    """Return whether a processor crops or pads images, so that fractions of its output are not those of the image."""
    return bool(getattr(processor, "do_center_crop", False) or getattr(processor, "do_pad", False))


def processor_range(processor: Any) -> PixelRange | None:
    """Return the values that a transformers image processor makes of black and white; None where it is not known."""
    if not getattr(processor, "do_rescale", False):
        return None
    if not getattr(processor, "do_normalize", False):
        return (0.0, 1.0)
    return Preprocess(mean=tuple(processor.image_mean), std=tuple(processor.image_std)).pixel_range


def _of_timm(settings: Mapping[str, Any]) -> Preprocess:
    _, height, width = settings["input_size"]
    given: dict[str, Any] = {"size": (int(width), int(height))}
    if settings.get("mean") is not None and settings.get("std") is not None:
        given |= {"mean": tuple(settings["mean"]), "std": tuple(settings["std"])}
    if settings.get("interpolation") in _FILTERS:
        given["interpolation"] = settings["interpolation"]
    mode, share = settings.get("crop_mode") or "center", float(settings.get("crop_pct") or 0.875)
    if mode == "squash":
        return Preprocess(fit="resize", **given)
    if mode == "border":
        return Preprocess(fit="letterbox", **given)
    return Preprocess(fit="crop", shorter=math.floor(min(width, height) / share), **given)
