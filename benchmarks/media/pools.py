"""Pools of labelled images and sounds that episodes are drawn from.

A pool of ``TUNE`` was looked at when views, heads and the rule that chooses among them were decided; one of ``REPORT``
only when results were written down. They differ in kind, and share no file. ``groups`` says which items belong
together (one drum kit, one voice): where a pool has groups, the queries of an episode come from other groups than its
examples.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import packages
import soundfile
from PIL import Image, ImageDraw, ImageFont

from acclimate.media.image_files import read_image
from acclimate.media.items import Item
from acclimate.media.sound_files import read_sound, sound_from_bytes


@dataclass(frozen=True)
class Pool:
    """Labelled items.

    Attributes:
        title: in words.
        items, labels: as many of each.
        groups: of each item; None where items do not belong together.
        ways: classes of an episode.
        seen: whether the default encoder was trained on these very classes.
    """

    title: str
    items: list[Item]
    labels: list[str]
    groups: list[str] | None = None
    ways: int = 5
    seen: bool = False


def limited(pool: Pool, per_class: int, *, seed: int = 0) -> Pool:
    """Return at most ``per_class`` items of each class, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(pool.items))
    count: dict[str, int] = {}
    kept = []
    for i in order:
        count[pool.labels[i]] = count.get(pool.labels[i], 0) + 1
        if count[pool.labels[i]] <= per_class:
            kept.append(int(i))
    groups = None if pool.groups is None else [pool.groups[i] for i in kept]
    return Pool(pool.title, [pool.items[i] for i in kept], [pool.labels[i] for i in kept], groups, pool.ways, pool.seen)


def from_arrays(title: str, images: np.ndarray, labels: np.ndarray) -> Pool:
    items = [Item.of("image", np.ascontiguousarray(image), f"{title} {i}") for i, image in enumerate(images)]
    return Pool(title, items, [str(label) for label in labels])


# Reported.
def cifar10(data: Path) -> Pool:
    stored = np.load(data / "cifar10" / "report_corrupted.npz")
    return from_arrays("CIFAR-10", stored["clean"], stored["labels"])


def handwritten_digits(data: Path) -> Pool:
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.clip(255 - digits.images * (255 / 16), 0, 255).astype(np.uint8)
    return from_arrays("handwritten digits", np.repeat(grey[..., None], 3, axis=3), digits.target)


def stamps(data: Path) -> Pool:
    """Pictures by what they show; folders with fewer than 12 pictures are left out."""
    root = packages.unpacked("tuxpaint-stamps-default") / "usr" / "share" / "tuxpaint" / "stamps"
    kinds = {
        "birds": "animals/birds", "fish": "animals/fish", "insects": "animals/insects", "mammals": "animals/mammals",
        "fruit": "food/fruit", "vegetables": "food/vegetables", "flowers": "plants/flowers", "trees": "plants/trees",
        "music": "hobbies/music", "hats": "clothes/hats", "coins": "symbols/money", "vehicles": "vehicles",
        "planets": "space", "household": "household", "sports": "sports",
    }  # fmt: skip
    items, labels = [], []
    for label, folder in kinds.items():
        found = [path for path in sorted((root / folder).rglob("*.png")) if "_mirror" not in path.stem]
        if len(found) < 12:
            continue
        for path in found:
            picture = Image.open(path).convert("RGBA")
            paper = Image.new("RGBA", picture.size, "white")
            paper.alpha_composite(picture)
            paper.thumbnail((224, 224))
            items.append(Item.of("image", np.asarray(paper.convert("RGB")), path.name))
            labels.append(label)
    return limited(Pool("stamps", items, labels), 60)


def street_parts(data: Path) -> Pool:
    """Squares of street scenes that show one thing over most of their area."""
    names = {0: "sky", 1: "building", 3: "road", 4: "pavement", 5: "tree", 8: "car"}
    items, labels, side = [], [], 64
    for path in sorted((data / "camvid" / "images").glob("*.png")):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        classes = cv2.imread(str(data / "camvid" / "labels" / path.name), cv2.IMREAD_UNCHANGED)
        for label, name in names.items():
            share = cv2.boxFilter((classes == label).astype(np.float32), -1, (side, side))
            share = share[side // 2 : -side // 2, side // 2 : -side // 2]
            row, column = np.unravel_index(int(share.argmax()), share.shape)
            if share[row, column] >= 0.75:
                items.append(
                    Item.of(
                        "image",
                        np.ascontiguousarray(image[row : row + side, column : column + side]),
                        f"{path.name} {name}",
                    )
                )
                labels.append(name)
    return Pool("street parts", items, labels)


def drums(data: Path) -> Pool:
    """Drum sounds by what was hit; queries come from other kits."""
    root = packages.unpacked("hydrogen-drumkits") / "usr" / "share" / "hydrogen" / "data" / "drumkits"
    kinds = {
        "kick": r"kick|bass ?drum|^bd", "snare": r"snare", "tom": r"\btom|tomhi|floor tom", "clap": r"clap",
        "closed hat": r"closed|hat .*cl$|^hat low", "open hat": r"open|\bop\b|swish", "crash": r"crash",
        "ride": r"ride", "cowbell": r"cowbell|agogo",
    }  # fmt: skip
    items, labels, groups = [], [], []
    for kit in sorted(root.iterdir()):
        text = (kit / "drumkit.xml").read_text(errors="replace")
        for instrument in re.findall(r"<instrument>(.*?)</instrument>", text, re.S):
            name = re.search(r"<name>(.*?)</name>", instrument)
            found = [k for k, pattern in kinds.items() if name and re.search(pattern, name[1], re.IGNORECASE)]
            if len(found) != 1:
                continue
            for file in re.findall(r"<filename>(.*?)</filename>", instrument)[:3]:
                if (kit / file).exists():
                    items.append(first_seconds(kit / file, 2.0))
                    labels.append(found[0])
                    groups.append(kit.name)
    return Pool("drums, new kits", items, labels, groups)


def voices(data: Path) -> Pool:
    """Spoken prompts: who speaks. Five speakers, each in a language of her or his own."""
    items, labels = [], []
    for language in ("en", "es", "fr", "it", "ru"):
        root = packages.unpacked(f"asterisk-core-sounds-{language}-wav") / "usr" / "share" / "asterisk" / "sounds"
        for path in sorted(root.rglob("*.wav")):
            if 0.4 < soundfile.info(path).duration < 6 and not re.search(r"beep|tone|silence|ring", path.stem):
                items.append(first_seconds(path, 3.0))
                labels.append(language)
    return limited(Pool("voices", items, labels), 80)


def spoken_digits(data: Path) -> Pool:
    """Digits that programs speak (espeak-ng and flite), in sixty voices; queries come from other voices."""
    words = "zero one two three four five six seven eight nine".split()
    variants = (
        "f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 klatt klatt2 klatt3 klatt4 Alicia Andrea Andy Annie Denis Diogo Gene "
        "Hugo Jacky Lee Marco Mario Michael Mike Storm adam anika aunty belinda benjamin boris caleb david ed edward "
        "grandma grandpa linda max norbert pablo paul quincy rob sandro steph travis victor"
    ).split()
    accents = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
    items, labels, groups = [], [], []
    rng = np.random.default_rng(0)
    for number, variant in enumerate(variants):
        for word in words:
            speed, pitch = rng.integers(120, 200), rng.integers(35, 65)
            voice = f"{accents[number % len(accents)]}+{variant}"
            command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
            sound = subprocess.run(command, check=True, capture_output=True).stdout
            items.append(spoken(sound, f"{word} {variant}"))
            labels.append(word)
            groups.append(variant)
    for voice in ("kal16", "awb", "rms", "slt"):
        for word in words:
            target = packages.cache() / "flite" / f"{voice}_{word}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["flite", "-voice", voice, "-t", word, "-o", str(target)], check=True)
            items.append(read_sound(target))
            labels.append(word)
            groups.append(voice)
    return Pool("spoken digits, new voices", items, labels, groups)


# For tuning.
def cifar10_jpeg(data: Path) -> Pool:
    """CIFAR-10 images that were stored as JPEG once; none of them is in the pool that is reported."""
    stored = np.load(data / "cifar10" / "tune_jpeg.npz")
    return from_arrays("CIFAR-10, JPEG", stored["images"], stored["labels"])


def photo_kinds(data: Path) -> Pool:
    """ImageNet photos by groups of its classes, which EfficientNet was trained to tell apart."""
    ranges = {
        "bird": ((7, 25), (80, 101), (127, 147)), "reptile": ((25, 69),), "dog": ((151, 269),),
        "insect": ((300, 327),),
        "food": ((924, 970),),
    }  # fmt: skip
    classes = {i: kind for kind, parts in ranges.items() for a, b in parts for i in range(a, b)}
    indices = json.loads((data / "imagenet_sample" / "labels.json").read_text())
    items, labels = [], []
    for path in sorted((data / "imagenet_sample" / "stream").iterdir()):
        index = indices.get(path.name, indices.get(path.stem))
        if index in classes:
            items.append(read_image(path))
            labels.append(classes[index])
    return Pool("photo kinds", items, labels, seen=True)


def object_crops(data: Path) -> Pool:
    """Objects cut out of COCO's photos, by category."""
    coco = json.loads((data / "coco_sample" / "instances.json").read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]}
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    items, labels = [], []
    for annotation in coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        if min(width, height) < 28 or annotation.get("iscrowd"):
            continue
        photo = read_image(data / "coco_sample" / "images" / files[annotation["image_id"]])
        # The longest side may have been reduced.
        scale = max(photo.values.shape[:2]) / max(
            next((i["width"], i["height"]) for i in coco["images"] if i["id"] == annotation["image_id"])
        )
        a, b, c, d = (round(v * scale) for v in (y, y + height, x, x + width))
        part = np.ascontiguousarray(photo.values[max(a, 0) : b, max(c, 0) : d])
        if min(part.shape[:2]) >= 20:
            items.append(Item.of("image", part, f"object {annotation['id']}"))
            labels.append(names[annotation["category_id"]])
    enough = {label for label in labels if labels.count(label) >= 10}
    kept = [i for i, label in enumerate(labels) if label in enough]
    return limited(Pool("object crops", [items[i] for i in kept], [labels[i] for i in kept], ways=4), 60)


def glyphs(data: Path) -> Pool:
    """Characters in the fonts that matplotlib brings, turned a little; queries are in other fonts."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [path for path in sorted(folder.glob("*.ttf")) if not re.search(r"Siz|Sym|cmex|cmsy|Display", path.name)]
    rng = np.random.default_rng(0)
    items, labels, groups = [], [], []
    for path in fonts:
        font = ImageFont.truetype(str(path), 40)
        for character in "abdefghkmnqrstwy":
            page = Image.new("L", (64, 64), 255)
            draw = ImageDraw.Draw(page)
            place = 32 + rng.normal(0, 2, 2)
            draw.text(tuple(place), character, fill=0, font=font, anchor="mm")
            page = page.rotate(float(rng.normal(0, 8)), fillcolor=255)
            items.append(Item.of("image", np.asarray(page.convert("RGB")), f"{character} {path.stem}"))
            labels.append(character)
            groups.append(path.stem)
    return Pool("characters, new fonts", items, labels, groups)


def letters(data: Path) -> Pool:
    """Names of letters in many languages; queries come from other speakers."""
    root = packages.unpacked("klettres-data") / "usr" / "share" / "klettres"
    items, labels, groups = [], [], []
    for path in sorted(root.glob("*/alpha/*.ogg")):
        if path.stem.lower() in set("abdefgiklmnoprstu"):
            items.append(read_sound(path))
            labels.append(path.stem.lower())
            groups.append(path.parts[-3])
    return Pool("spoken letters, new speakers", items, labels, groups)


def instruments(data: Path) -> Pool:
    """Short sounds by the family that their file is named after."""
    root = packages.unpacked("sonic-pi-samples") / "usr" / "share" / "sonic-pi" / "samples"
    items, labels = [], []
    for path in sorted(root.glob("*.flac")):
        family = {"bd": "bass drum", "sn": "drum"}.get(path.stem.split("_")[0], path.stem.split("_")[0])
        if family in {"bass drum", "drum", "tabla", "elec", "ambi", "perc", "loop"}:
            items.append(first_seconds(path, 2.0))
            labels.append(family)
    return Pool("instruments", items, labels)


def first_seconds(path: Path, seconds: float) -> Item:
    info = soundfile.info(path)
    samples, rate = soundfile.read(path, frames=min(info.frames, round(seconds * info.samplerate)), always_2d=True)
    return spoken(wav(samples, rate), path.name)


def wav(samples: np.ndarray, rate: int) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format="WAV", subtype="FLOAT")
    return target.getvalue()


def spoken(content: bytes, name: str) -> Item:
    return sound_from_bytes(content, name=name)


TUNE: Final[Mapping[str, Callable[[Path], Pool]]] = {
    f.__name__: f for f in (cifar10_jpeg, photo_kinds, object_crops, glyphs, letters, instruments)
}
REPORT: Final[Mapping[str, Callable[[Path], Pool]]] = {
    f.__name__: f for f in (cifar10, handwritten_digits, stamps, street_parts, drums, voices, spoken_digits)
}
