"""The level at which a network hears a mixture, and whole frames up to its end.

Some networks are trained on mixtures that are divided by their standard deviation (ESPnet's options
``normalize_variance`` and ``normalize_variance_per_ch``); what they estimate is multiplied by it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SILENT_STD = 1e-8  # a silent mixture is not divided by zero


def mixture_level(speech: Tensor, per_channel: bool = False) -> Tensor:
    """Standard deviation of each mixture, taken before any padding; at least :data:`SILENT_STD`.

    Args:
        speech: ``(B, samples)`` or ``(B, samples, channels)``.
        per_channel: one level for each channel, instead of one over all channels.

    Returns:
        Levels that ``speech`` can be divided by: ``(B, 1)`` or ``(B, 1, 1)``, per channel ``(B, 1, channels)``.
    """
    over = (1,) if per_channel else tuple(range(1, speech.dim()))
    if speech.shape[1] < 2:  # a single sample has no standard deviation
        return torch.ones_like(speech.sum(dim=over, keepdim=True))
    return speech.std(dim=over, keepdim=True).clamp_min(SILENT_STD)


def pad_to_hops(speech: Tensor, hop: int, at_least: int = 0) -> Tensor:
    """Append zeros up to a whole number of hops.

    The last samples of any other length lie under the edge of one single frame, and an inverse STFT would divide them
    by a window value near zero, which shows as a spike at the end.

    Args:
        speech: ``(B, samples)`` or ``(B, samples, channels)``.
        hop: hop of the STFT in samples.
        at_least: samples that the result has at least.
    """
    samples = speech.shape[1]
    missing = max(-(-samples // hop) * hop, at_least) - samples
    return F.pad(speech, (0, missing) if speech.dim() == 2 else (0, 0, 0, missing))
