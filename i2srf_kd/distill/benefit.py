"""Where the teacher is ahead of the student: the knowledge gap, by frame and by bin. Ours; DISPatch's idea, graded."""

from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from i2srf_kd.distill.matching import check_count, check_number, full_precision, match_frames, match_width
from i2srf_kd.distill.method import Side
from i2srf_kd.losses.compressed_spectrum import compress

_ERROR_FLOOR = 1e-8


class CompressedMagnitude(nn.Module):
    """Compressed magnitude ``|STFT|^power`` of waveforms ``(B, samples)``: ``(B, T, F)``.

    Args:
        power: exponent; 1 is no compression.
        n_fft, hop_length: transform, in samples; periodic Hann window.
        floor: added to the power spectrum.

    Raises:
        ValueError: for options out of range.
    """

    window: Tensor

    def __init__(self, power: float = 0.3, n_fft: int = 512, hop_length: int = 256, floor: float = 1e-10):
        super().__init__()
        check_number("power", power, 0, 1, above=True)
        check_number("floor", floor, 0, above=True)
        check_count("n_fft", n_fft)
        check_count("hop_length", hop_length)
        if hop_length > n_fft:
            raise ValueError(f"hop_length {hop_length} must not exceed n_fft {n_fft}: samples would be skipped")
        self.power, self.floor = float(power), float(floor)
        self.n_fft, self.hop_length = n_fft, hop_length
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        waveform = full_precision(waveform)
        window = self.window.to(waveform.dtype)
        spectrum = torch.stft(
            waveform, self.n_fft, self.hop_length, window=window, pad_mode="constant", return_complex=True
        )
        return compress(torch.view_as_real(spectrum.mT), self.power, self.floor)[0]


def check_waveforms(
    method: str, student: Optional[Tensor], teacher: Optional[Tensor], reference: Optional[Tensor]
) -> Tuple[Tensor, Tensor, Tensor]:
    """The three signals ``(B, samples)``; ValueError unless all are there and of one shape."""
    if reference is None:
        raise ValueError(f"{method} compares both networks with the clean reference, which was not handed over")
    if student is None or teacher is None:
        raise ValueError(f"{method} compares the networks' waveform, which was not handed over")
    if not reference.shape == student.shape == teacher.shape:
        raise ValueError(
            f"{method}: the reference has shape {tuple(reference.shape)}, the student's waveform "
            f"{tuple(student.shape)}, the teacher's {tuple(teacher.shape)}"
        )
    return student, teacher, reference


class Benefit(nn.Module):
    """How far the teacher's estimate is ahead of the student's, relative to the errors of both: 0 to 1.

    With the mean squared errors E of student s and teacher t to the reference, on compressed magnitudes, the benefit of
    a frame (error over its bins) or of a bin (error over its frames) is ``max(0, E_s - E_t) / (E_s + E_t)``. It has no
    gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.magnitude = CompressedMagnitude()

    @torch.no_grad()
    def forward(
        self, student: Side, teacher: Side, reference: Optional[Tensor], frames: int, bins: int
    ) -> Dict[str, Tensor]:
        """Benefit by stream of the calibration: frames ``(B, frames)`` for time and clips, bins ``(B, bins)``.

        Raises:
            ValueError: a waveform is missing, or they differ in length.
        """
        waveforms = check_waveforms("benefit", student.waveform, teacher.waveform, reference)
        with torch.autocast(waveforms[0].device.type, enabled=False):
            ours, theirs, clean = (self.magnitude(x) for x in waveforms)
            errors = [(estimate - clean).square() for estimate in (ours, theirs)]
            by_frame = match_frames(_lead(*(e.mean(2) for e in errors))[:, None, :, None], frames)[:, 0, :, 0]
            by_bin = match_width(_lead(*(e.mean(1) for e in errors)), bins)
        return {"time": by_frame, "clips": by_frame, "frequency": by_bin}


def _lead(student_error: Tensor, teacher_error: Tensor) -> Tensor:
    return (student_error - teacher_error).clamp_min(0) / (student_error + teacher_error + _ERROR_FLOOR)
