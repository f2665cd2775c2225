"""What the plugin's tests share; they stand alone, as a third party's do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from kdbench_vidlankd import world

# Time limits would fail on a busy machine and say nothing about the plugin.
settings.register_profile("vidlankd", deadline=None)
settings.load_profile("vidlankd")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than about ten seconds")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One data cache for the session; a test never touches the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def small_world() -> Iterator[None]:
    """Worlds of as many nouns as ever, with a tenth of the text and a sixth of the clips."""
    pytest.importorskip("tokenizers", reason="needs kdbench-vidlankd[bert]")
    from kdbench_vidlankd import corpus

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "SENTENCES", 1_400)
        for module in (world, corpus):
            patch.setattr(module, "TRAIN_CLIPS", 4)
        corpus._corpus.cache_clear()
        yield
    corpus._corpus.cache_clear()
