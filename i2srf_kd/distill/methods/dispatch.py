"""DISPatch: distil only the spectrogram patches in which the teacher is ahead (arXiv 2509.15922)."""

from typing import Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from i2srf_kd.distill.matching import check_count, check_number, full_precision
from i2srf_kd.distill.method import DistillMethod, Layout, Side, register_method
from i2srf_kd.distill.methods.response import require_same_shape
from i2srf_kd.losses.compressed_spectrum import compress


def patch_means(values: Tensor, patch: Tuple[int, int]) -> Tensor:
    """Means over patches of (frames, bins): ``(B, T, F)`` to ``(B, ceil(T/p), ceil(F/q))``.

    Patches at the upper edges may be smaller; their mean is over the bins they have.
    """
    return F.avg_pool2d(values.unsqueeze(1), patch, ceil_mode=True).squeeze(1)


def leading_patches(gap: Tensor, share: float) -> Tensor:
    """Mask of the ``share`` of each clip's patches with the largest gap, of those where it is positive: ``(B, N)``."""
    count = max(1, round(share * gap.shape[1]))
    chosen = torch.zeros_like(gap, dtype=torch.bool).scatter(1, gap.topk(count, dim=1).indices, True)
    return chosen & (gap > 0)


@register_method("dispatch")
class DISPatch(DistillMethod):
    """DISPatch: imitate the teacher only on the patches of the spectrogram where it beats the student most.

    Definition: from the waveforms of student, teacher and clean reference ``(B, samples)``, compressed magnitudes
    ``|.|^power`` ``(B, T, F)`` are cut into patches of ``patch`` frames by bins. Per patch, the gap is the student's
    mean squared error to the reference less the teacher's. In each clip the ``share`` of patches with the largest gap
    is chosen, as far as the gap is positive; the loss is the mean over chosen patches (of all clips) of the mean
    squared difference of student and teacher; 0 where none is chosen.

    Source: distilling selective patches, arXiv 2509.15922. Our reading of what is public: one size of patch at all
    frequencies, a fixed share, gap and loss on compressed magnitudes, and a transform of our own, so that networks
    with different transforms can be paired.

        method: dispatch
        method_conf: {patch: [8, 16], share: 0.25}
        weight: 1.0

    Args:
        patch: frames and bins of a patch.
        share: share of the patches to choose, above 0 and at most 1.
        power: exponent of the magnitude; 1 is no compression.
        n_fft, hop_length: transform, in samples; periodic Hann window.
        floor: added to the power spectrum.

    Raises:
        ValueError: for options out of range, waveforms of different length, or without a reference.
    """

    needs = ("waveform", "reference")
    source = "arXiv 2509.15922, our reading"
    window: Tensor

    def __init__(
        self,
        student: Layout,
        teacher: Layout,
        patch: Sequence[int] = (8, 16),
        share: float = 0.25,
        power: float = 0.3,
        n_fft: int = 512,
        hop_length: int = 256,
        floor: float = 1e-10,
    ):
        super().__init__(student, teacher)
        if isinstance(patch, (str, int)) or len(patch) != 2:
            raise ValueError(f"patch must be frames and bins such as [8, 16], not {patch!r}")
        for size in patch:
            check_count("patch", size)
        check_number("share", share, 0, 1, above=True)
        check_number("power", power, 0, 1, above=True)
        check_number("floor", floor, 0, above=True)
        check_count("n_fft", n_fft)
        check_count("hop_length", hop_length)
        if hop_length > n_fft:
            raise ValueError(f"hop_length {hop_length} must not exceed n_fft {n_fft}: samples would be skipped")
        self.patch = (patch[0], patch[1])
        self.share, self.power, self.floor = float(share), float(power), float(floor)
        self.n_fft, self.hop_length = n_fft, hop_length
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def _magnitude(self, waveform: Tensor) -> Tensor:
        """Compressed magnitude ``(B, T, F)``."""
        window = self.window.to(waveform.dtype)
        spectrum = torch.stft(
            waveform, self.n_fft, self.hop_length, window=window, pad_mode="constant", return_complex=True
        )
        return compress(torch.view_as_real(spectrum.mT), self.power, self.floor)[0]

    def forward(self, student: Side, teacher: Side, reference: Optional[Tensor] = None) -> Dict[str, Tensor]:
        if reference is None:
            raise ValueError("dispatch compares both networks with the clean reference, which was not handed over")
        require_same_shape("waveform", student.waveform, teacher.waveform)
        assert student.waveform is not None and teacher.waveform is not None
        if reference.shape != student.waveform.shape:
            raise ValueError(
                f"the reference has shape {tuple(reference.shape)}, the student's waveform "
                f"{tuple(student.waveform.shape)}"
            )
        with torch.autocast(reference.device.type, enabled=False):
            waveforms = (student.waveform, teacher.waveform.detach(), reference.detach())
            ours, theirs, clean = (self._magnitude(full_precision(x)) for x in waveforms)
            gap = self._patch_errors(ours.detach(), clean) - self._patch_errors(theirs, clean)
            chosen = leading_patches(gap, self.share).to(ours.dtype)
            difference = self._patch_errors(ours, theirs)
            return {"patches": (difference * chosen).sum() / chosen.sum().clamp_min(1)}

    def _patch_errors(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of each patch ``(B, N)``."""
        return patch_means((estimate - target).square(), self.patch).flatten(1)
