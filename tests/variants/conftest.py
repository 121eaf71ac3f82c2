"""A tiny base of every architecture, made once."""

from pathlib import Path

import pytest

from tests.tiny import ARCHITECTURES, make_model


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {architecture: make_model(architecture, folder / architecture) for architecture in ARCHITECTURES}
