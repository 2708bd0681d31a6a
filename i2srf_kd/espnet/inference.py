"""Running an ESPnet enhancement model from waveform to waveform."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from i2srf_kd.system.errors import UserError

SILENT_STD = 1e-8  # a silent mixture is not divided by zero


@torch.no_grad()
def enhance_waveform(model: Any, speech: Tensor) -> Tensor:
    """Enhance with an ``ESPnetEnhancementModel`` in evaluation mode, levels as the model's options say.

    The mixture is padded to whole hops: past the centre of the last frame, the inverse STFT divides by a window that
    is almost zero, which shows as a spike at the end of an utterance.

    Args:
        model: the model.
        speech: mixture ``(B, samples)`` or ``(B, samples, channels)``.

    Returns:
        The first estimated speaker at the reference microphone ``(B, samples)``.

    Raises:
        UserError: the model estimates no waveform.
    """
    samples = speech.shape[1]
    hop = getattr(getattr(model, "encoder", None), "hop_length", None) or 1
    padding = (0, -samples % hop) if speech.dim() == 2 else (0, 0, 0, -samples % hop)
    scale = speech.new_ones(())
    if getattr(model, "normalize_variance_per_ch", False):
        scale = speech.std(dim=1, keepdim=True)
    elif getattr(model, "normalize_variance", False):
        scale = speech.std(dim=tuple(range(1, speech.dim())), keepdim=True)
    scale = scale.clamp_min(SILENT_STD)
    padded = F.pad(speech / scale, padding)
    lengths = torch.full((len(speech),), padded.shape[1], dtype=torch.long, device=speech.device)
    estimates = model.forward_enhance(padded, lengths, {})[0]
    if estimates is None:
        raise UserError("the model estimates no waveform, only masks: it cannot be used to enhance")
    estimate = estimates[0]
    estimate = estimate[0] if isinstance(estimate, (list, tuple)) else estimate
    reference_channel = getattr(model, "ref_channel", None) or 0
    if scale.dim() == 3:
        scale = scale[:, :, reference_channel if scale.shape[2] > 1 else 0]
    if estimate.dim() == 3:
        estimate = estimate[:, :, reference_channel]
    return (estimate * scale)[:, :samples]
