from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acclimate.errors import CancelledError, ConfigError
from acclimate.ui.image_results import choice_html, result_html, steps_html
from acclimate.ui.image_runs import BatchSeen, Job, Result, Runner, Shown, check_folder
from acclimate.ui.image_sets import ImageSet, ImageSets
from acclimate.ui.image_shown import picture, words
from acclimate.vision.data.images import CorruptionSpec
from acclimate.vision.demos import digits
from acclimate.vision.models.loading import AdapterOptions


@pytest.fixture(scope="module")
def sets(digits_checkpoint: Path) -> Iterator[ImageSets]:
    made = ImageSets()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(digits, "train", functools.partial(shutil.copyfile, digits_checkpoint))
        yield made
    made.close()


@pytest.fixture(scope="module")
def job(sets: ImageSets) -> Job:
    return Job(
        images=sets.sample("digits"),
        adapter=sets.digits_options(),
        method="blend",
        corruption=CorruptionSpec("contrast", 4),
        most=48,
        batch_size=16,
    )


def ran(job: Job) -> tuple[Result, list[BatchSeen], list[Shown]]:
    events: list[BatchSeen | Shown] = []
    result = Runner().run(job, tell=events.append, cancelled=threading.Event())
    seen = [event for event in events if isinstance(event, BatchSeen)]
    return result, seen, [event for event in events if isinstance(event, Shown)]


def test_a_damaged_stream_is_predicted_better_and_shown(job: Job) -> None:
    result, seen, shown = ran(job)
    before, after = result.metrics["accuracy"]
    assert after > before + 0.5
    assert result.gain is not None
    assert result.gain.low > 0.3
    assert [batch.images for batch in seen] == [16, 32, 48]
    assert all(batch.damaged and batch.verdict == "kept" for batch in seen)
    assert np.mean([batch.right_after for batch in seen]) == pytest.approx(after)
    assert np.mean([batch.right_before for batch in seen]) == pytest.approx(before)
    assert list(result.shown) == shown
    assert len(shown) == 24
    assert all(image.handed_on is not None and image.handed_on.dtype == np.uint8 for image in shown)
    # The filter makes up for the lost contrast.
    assert shown[0].handed_on is not None
    assert shown[0].handed_on.std() > 2 * shown[0].pixels.std()
    for large in (False, True):
        assert picture(shown[0].pixels, shown[0].after, large=large).startswith("data:image/png;base64,")
    assert words(shown[0].after, {}) == words(shown[0].after, {3: "three"}).replace("three", "3")
    assert "accuracy" in result_html(result)
    assert "3 kept" in steps_html(seen)


def test_a_live_stream_is_damaged_in_its_middle_only(job: Job) -> None:
    result, seen, _ = ran(replace(job, play="live"))
    assert [batch.damaged for batch in seen] == [False, True, False]
    assert [batch.same for batch in seen][::2] == [1.0, 1.0]
    assert seen[1].same < 1
    assert result.images == 48


def test_auto_shows_what_it_tried(job: Job) -> None:
    result, _, _ = ran(replace(job, method="auto"))
    assert result.choice is not None
    shown = choice_html(result.choice)
    for trial in result.choice.trials:
        assert f"<td>{trial.method}</td>" in shown


def test_the_default_and_a_method_without_source_images_run(job: Job) -> None:
    for method in ("default", "tent"):
        result, _, _ = ran(replace(job, method=method, corruption=None))
        before, after = result.metrics["accuracy"]
        assert after >= before - 0.05


def test_a_run_ends_when_it_is_cancelled_or_takes_too_long(job: Job) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        Runner().run(job, tell=lambda _: None, cancelled=cancelled)
    with pytest.raises(CancelledError, match="took longer than 0 s; take fewer images"):
        Runner().run(replace(job, max_seconds=0.0), tell=lambda _: None, cancelled=threading.Event())


def test_runs_wait_for_each_other_and_can_be_given_up_meanwhile(job: Job) -> None:
    runner, release, began = Runner(), threading.Event(), threading.Event()

    def hold(_: object) -> None:
        began.set()
        release.wait()

    first = threading.Thread(target=lambda: runner.run(job, tell=hold, cancelled=threading.Event()))
    first.start()
    began.wait()
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    with pytest.raises(CancelledError, match="ended before it began"):
        runner.run(job, tell=lambda _: None, cancelled=cancelled)
    release.set()
    first.join()


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        check_folder(Path("/nowhere/at/all"))


def test_a_segmenter_is_run_and_its_classes_are_drawn(tmp_path: Path) -> None:
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    job = Job(
        images=ImageSet(tmp_path),
        adapter=AdapterOptions(adapter="torch", model="tests.vision.factories:segmenter"),
        method="bn",
        corruption=CorruptionSpec("contrast", 3),
        most=6,
        batch_size=2,
    )
    result, seen, shown = ran(job)
    assert (result.kind, result.images, len(seen)) == ("segmenter", 6, 3)
    assert picture(shown[0].pixels, shown[0].after) != picture(shown[0].pixels)
    assert words(shown[0].after, {}) != "nothing"
