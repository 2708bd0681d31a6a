"""Waveform to spectrum planes and back.

The transform equals ESPnet's ``STFTEncoder``/``STFTDecoder`` with the same sizes (periodic Hann window, centred
frames, reflected edges), so that a network trained there runs here unchanged.
"""

import torch
from torch import Tensor, nn


class STFT(nn.Module):
    """Short-time Fourier transform and its inverse.

    Args:
        n_fft: FFT and window length in samples (published: 512 at 16 kHz).
        hop_length: hop in samples (published: 256).
    """

    window: Tensor

    def __init__(self, n_fft: int = 512, hop_length: int = 256):
        super().__init__()
        if not 0 < hop_length <= n_fft // 2:
            raise ValueError(f"hop_length {hop_length} must be between 1 and n_fft / 2 = {n_fft // 2}")
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """``(B, samples)`` or ``(B, samples, channels)`` to planes ``(B, 2 * channels, T, F)``.

        Planes are real, imaginary of channel 0, then of channel 1, and so on.

        Raises:
            ValueError: when the waveform is too short for one reflected edge (n_fft / 2 + 1 samples).
        """
        if waveform.dim() == 2:
            waveform = waveform.unsqueeze(-1)
        batch, samples, channels = waveform.shape
        if samples <= self.n_fft // 2:
            raise ValueError(f"{samples} samples are too few for an STFT of size {self.n_fft}: pad the waveform")
        flat = waveform.transpose(1, 2).reshape(batch * channels, samples)
        spectrum = torch.stft(
            flat, self.n_fft, self.hop_length, window=self.window.to(flat.dtype), center=True, return_complex=True
        )
        planes = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (B * channels, 2, T, F)
        return planes.reshape(batch, 2 * channels, *planes.shape[2:])

    def inverse(self, planes: Tensor, samples: int) -> Tensor:
        """Planes ``(B, 2, T, F)`` to a waveform ``(B, samples)``."""
        spectrum = torch.complex(planes[:, 0], planes[:, 1]).transpose(1, 2)
        window = self.window.to(planes.dtype)
        return torch.istft(spectrum, self.n_fft, self.hop_length, window=window, center=True, length=samples)
