import multiprocessing
from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint with random weights, for 16 x 24 pictures."""
    # Imported here, so that tests which need no PyTorch start quickly.
    from tests.tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Pool]:
    """A process that was started anew. It takes seconds to import PyTorch and MuJoCo there, so all tests share one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.fixture
def small_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos of saved results in the size of their pictures: a larger one is only slower to write."""
    monkeypatch.setattr("aether_env.visual.WATCHABLE_HEIGHT", 1)
