"""Spectrograms on one colour scale."""

from typing import Any, Mapping

import numpy as np
from numpy.typing import ArrayLike

from i2srf_kd.results.drawing import new_figure, save_figure
from i2srf_kd.system.files import PathLike

_WINDOW_SECONDS = 0.032
DYNAMIC_RANGE_DB = 80.0


def log_spectrogram(waveform: ArrayLike, fs: int) -> np.ndarray:
    """Power spectrogram in dB, ``(samples,)`` to ``(frequencies, frames)``: Hann window of 32 ms, 75 % overlap."""
    wave = np.asarray(waveform, dtype=np.float64)
    length = round(_WINDOW_SECONDS * fs)
    wave = np.pad(wave, (0, max(0, length - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, length)[:: length // 4]
    spectrum = np.fft.rfft(frames * np.hanning(length), axis=1).T / (length / 2)
    return 10.0 * np.log10(np.square(np.abs(spectrum)) + 1e-12)


def draw_spectrogram(axis: Any, spectrum: np.ndarray, samples: int, fs: int, top: float) -> Any:
    """Draw :func:`log_spectrogram` of a waveform, seconds against kHz, down from ``top`` dB; returns the image."""
    return axis.imshow(
        spectrum, origin="lower", aspect="auto", cmap="magma", vmin=top - DYNAMIC_RANGE_DB, vmax=top,
        extent=(0.0, samples / fs, 0.0, fs / 2000.0),
    )  # fmt: skip


def spectrogram_grid(waveforms: Mapping[str, ArrayLike], fs: int, path: PathLike) -> None:
    """Draw one spectrogram per waveform, one above the other, all on the same scale in dB.

    Args:
        waveforms: title to waveform ``(samples,)`` in [-1, 1].
        fs: sampling rate in Hz.
        path: picture to write; its suffix chooses the format.
    """
    spectra = {title: log_spectrogram(waveform, fs) for title, waveform in waveforms.items()}
    top = max(float(spectrum.max()) for spectrum in spectra.values())
    figure, axes = new_figure(len(spectra), 1, (9.0, 2.2 * len(spectra) + 0.6))
    image = None
    for axis, (title, spectrum) in zip(axes[:, 0], spectra.items(), strict=True):
        image = draw_spectrogram(axis, spectrum, len(np.asarray(waveforms[title])), fs, top)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("kHz")
    axes[-1, 0].set_xlabel("time [s]")
    figure.colorbar(image, ax=list(axes[:, 0]), label="dB")
    save_figure(figure, path)
