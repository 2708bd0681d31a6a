"""Running an ESPnet enhancement model from waveform to waveform."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from i2srf_kd.audio.normalize import mixture_level, pad_to_hops
from i2srf_kd.system.errors import UserError


@torch.no_grad()
def enhance_waveform(model: Any, speech: Tensor) -> Tensor:
    """Enhance with an ``ESPnetEnhancementModel`` in evaluation mode, levels as the model's options say.

    Args:
        model: the model.
        speech: mixture ``(B, samples)`` or ``(B, samples, channels)``.

    Returns:
        The first estimated speaker at the reference microphone ``(B, samples)``.

    Raises:
        UserError: the model estimates no waveform.
    """
    samples = speech.shape[1]
    per_channel = getattr(model, "normalize_variance_per_ch", False)
    scale = speech.new_ones((1,) * speech.dim())
    if per_channel or getattr(model, "normalize_variance", False):
        scale = mixture_level(speech, per_channel)
    padded = pad_to_hops(speech / scale, getattr(getattr(model, "encoder", None), "hop_length", None) or 1)
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


def enhance_utterance(model: Any, mixture: np.ndarray) -> np.ndarray:
    """:func:`enhance_waveform` for one utterance ``(samples,)`` or ``(samples, channels)``, as arrays."""
    device = next(model.parameters()).device
    speech = torch.from_numpy(np.ascontiguousarray(mixture)).unsqueeze(0).to(device)
    return enhance_waveform(model, speech)[0].float().cpu().numpy()
