"""Real speech and a teacher trained on it."""

from pathlib import Path

import pytest


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
