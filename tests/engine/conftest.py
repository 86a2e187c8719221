"""Engines on the tiny model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scheduler.pools.engine.loop import Engine
from tests.engine.tiny_model import build_tiny_model

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a prepared tiny model."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def make_engine(tiny_model: Path) -> Iterator[MakeEngine]:
    """Starts engines on the tiny model and stops them after the test."""
    engines: list[Engine] = []

    def make(
        *, slots: int = 3, context_tokens: int = 256, waiting_max: int = 4, model_dir: Path = tiny_model
    ) -> Engine:
        engine = Engine(
            model_dir,
            slots=slots,
            context_tokens=context_tokens,
            waiting_max=waiting_max,
            threads=1,
            entropy=itertools.count(11).__next__,
        )
        engines.append(engine)
        engine.start(timeout_s=60)
        return engine

    yield make
    for engine in engines:
        assert engine.stop(deadline_s=0)


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    """Three slots, a context of 256 tokens, four places to wait."""
    return make_engine()
