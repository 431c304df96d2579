"""What all tests share: fixed random numbers, a metrics store for each test, and how workers divide the tests."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings

# By default every run tries the same examples, and no example has a time limit of its own.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
# `make test-all` takes this one by --hypothesis-profile: other examples every time, and the way to repeat a failure.
settings.register_profile("random", derandomize=False, deadline=None, database=None, print_blob=True)
settings.load_profile("repeatable")

# No test asks a model hub; a name that looks like one on a hub is an error at once, and not after many attempts.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

#: What takes longest begins first, so that no worker is left with it when the others have ended.
LONGEST = (
    "ui/test_page.py", "test_docs.py", "isolation/test_isolation.py", "cli/test_pose_scenes_commands.py",
    "hosts/test_inside_a_host.py", "serve/test_server.py", "serve/test_vllm.py", "language/test_engine.py",
    "vision/test_transformers_adapter.py", "contract/test_methods.py", "faults/test_faults.py",
)  # fmt: skip
#: Files that share a server or a network.
TOGETHER = dict.fromkeys(("ui/test_access_to_the_page.py", "ui/test_image_runs.py"), "ui/test_page.py")


def _name(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what takes longest."""
    order = {name: number for number, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        name = _name(item.nodeid)
        return order.get(TOGETHER.get(name, name), len(order))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one worker, so that the servers, models and networks its tests share are made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = _name(nodeid)
            return TOGETHER.get(name, name)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the digits network of the demo, trained more shortly."""
    from acclimate.vision.demos import digits

    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    assert digits.train(path, epochs=12) > 0.9
    return path


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Numbers that a test draws without a seed do not depend on the tests before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        # Not torch.manual_seed: where no GPU is used it notes the call with its stack, in milliseconds, for later.
        sys.modules["torch"].default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def metrics_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the metrics stores of the tests are: most tests make none, and need no folder of their own for it."""
    return tmp_path_factory.mktemp("metrics")


@pytest.fixture(autouse=True)
def metrics_of_this_test(metrics_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a metrics store of its own: commands that a test runs record there."""
    path = metrics_folder / f"{uuid4().hex}.db"
    monkeypatch.setenv("ACCLIMATE_DB_URL", str(path))
    return path
