"""DISPatch: distil only the spectrogram patches in which the teacher is ahead (arXiv 2509.15922)."""

from typing import Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from i2srf_kd.distill.benefit import CompressedMagnitude, check_waveforms
from i2srf_kd.distill.matching import check_count, check_number
from i2srf_kd.distill.method import DistillMethod, Layout, Side, register_method


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
        self.patch = (patch[0], patch[1])
        self.share = float(share)
        self.magnitude = CompressedMagnitude(power, n_fft, hop_length, floor)

    def forward(self, student: Side, teacher: Side, reference: Optional[Tensor] = None) -> Dict[str, Tensor]:
        ours, theirs, clean = check_waveforms("dispatch", student.waveform, teacher.waveform, reference)
        with torch.autocast(clean.device.type, enabled=False):
            ours, theirs, clean = (self.magnitude(x) for x in (ours, theirs.detach(), clean.detach()))
            gap = self._patch_errors(ours.detach(), clean) - self._patch_errors(theirs, clean)
            chosen = leading_patches(gap, self.share).to(ours.dtype)
            difference = self._patch_errors(ours, theirs)
            return {"patches": (difference * chosen).sum() / chosen.sum().clamp_min(1)}

    def _patch_errors(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of each patch ``(B, N)``."""
        return patch_means((estimate - target).square(), self.patch).flatten(1)
