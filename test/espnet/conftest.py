"""Makes the helper module ``toy`` importable: no package can be named as ESPnet's own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cut of the mini corpus."""
    from speech_task import write_speech

    return write_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="session")
def speech_teacher(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experiment of a DPDCRN of twelve channels, trained for 15 steps on that cut."""
    import speech_task

    folder = tmp_path_factory.mktemp("speech_teacher") / "exp"
    command = speech_task.arguments(speech, folder, "--num_iters_per_epoch", "5", separator=speech_task.TEACHER)
    assert speech_task.train(command) == 0
    return folder
