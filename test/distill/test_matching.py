"""Networks of different frame rates, brought together."""

import pytest
import torch
import torch.nn.functional as F

from i2srf_kd.distill import Side
from i2srf_kd.distill.matching import frame_matrix, match_frames, match_sides


def test_more_frames_are_linear_interpolation() -> None:
    x = torch.randn(2, 3, 5, 4)
    want = F.interpolate(x, size=(13, 4), mode="bilinear", align_corners=True)
    torch.testing.assert_close(match_frames(x, 13), want)


@pytest.mark.parametrize("frames, target", [(5, 13), (13, 5), (126, 63), (64, 63), (7, 1), (1, 4)])
def test_levels_are_kept(frames: int, target: int) -> None:
    matrix = frame_matrix(frames, target, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(0), torch.ones(target, dtype=torch.float64))
    assert (matrix >= 0).all() and (matrix.sum(1) > 0).all(), "no frame is skipped"


def test_an_event_stays_where_it_is() -> None:
    """A burst seen by two STFTs of different hops is at the same frame after matching."""
    signal = torch.zeros(16000)
    signal[9000:9400] = 1
    levels = []
    for hop in (64, 256):
        spectrum = torch.stft(signal, 512, hop, window=torch.hann_window(512), return_complex=True)
        levels.append(spectrum.abs().square().sum(0)[None, None, :, None])
    matched = match_frames(levels[0], levels[1].shape[2])
    assert int(matched.argmax(2)) == int(levels[1].argmax(2)) == 36


def test_all_layers_get_the_fewest_frames_of_the_student() -> None:
    student = Side({"a": [torch.randn(1, 2, 8, 3, requires_grad=True), torch.randn(1, 2, 6, 3)]})
    ours, theirs = match_sides(student, Side({"a": [torch.randn(1, 4, 11, 5)]}, waveform=torch.ones(1, 9)))
    assert [f.shape[2] for f in ours.features["a"] + theirs.features["a"]] == [6, 6, 6]
    assert ours.features["a"][1] is student.features["a"][1] and ours.features["a"][0].requires_grad
    assert theirs.waveform is not None
    assert match_sides(Side(), theirs)[1] is theirs
