"""Files of experiments with known scores, shared by the tests of results."""

from pathlib import Path

import pytest
from results import synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_data(tmp_path_factory.mktemp("data") / "test")


@pytest.fixture(scope="module")
def ablation(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_ablation(tmp_path_factory.mktemp("ablation") / "exp" / "grid", data)
