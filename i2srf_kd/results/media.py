"""Sound and pictures as text that a page carries inside itself."""

import base64
import io
from typing import Tuple

import numpy as np
import soundfile

from i2srf_kd.results.spectrogram import draw_spectrogram, log_spectrogram
from i2srf_kd.system.errors import UserError

# Names of soundfile, and media types. MP3 plays in every browser, OGG in all but older ones of Apple, FLAC is lossless.
AUDIO_FORMATS = {
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "ogg": ("OGG", "VORBIS", "audio/ogg"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
}
# Where the time axis begins and ends in a picture of :func:`spectrogram_png`, as shares of its width.
PLOT_LEFT, PLOT_RIGHT = 0.07, 0.995
_SIZE_INCHES, _DPI = (6.4, 2.0), 140
_NEUTRAL = "#7d848f"  # labels that can be read on white and on black
_COLORS = 96


def data_uri(content: bytes, media_type: str) -> str:
    """Content as a ``data:`` address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def encode_audio(waveform: np.ndarray, fs: int, kind: str = "mp3") -> str:
    """A waveform ``(samples,)`` as a ``data:`` address; what is beyond [-1, 1] is clipped.

    Args:
        waveform: one channel.
        fs: sampling rate in Hz.
        kind: one of :data:`AUDIO_FORMATS`; all but ``flac`` lose a little.

    Raises:
        UserError: the installed libsndfile cannot write the format.
    """
    container, coding, media_type = AUDIO_FORMATS[kind]
    if container not in soundfile.available_formats():
        raise UserError(f"the installed libsndfile cannot write {kind}: choose another --audio_format")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1.0, 1.0).astype(np.float32), fs, coding, format=container)
    return data_uri(buffer.getvalue(), media_type)


def spectrogram_png(waveform: np.ndarray, fs: int, top: float) -> str:
    """Spectrogram with axes on a transparent ground, as a ``data:`` address.

    Args:
        waveform: ``(samples,)``.
        fs: sampling rate in Hz.
        top: level in dB of the brightest colour, so that pictures beside each other share a scale.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=_SIZE_INCHES)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((PLOT_LEFT, 0.16, PLOT_RIGHT - PLOT_LEFT, 0.8))
    draw_spectrogram(axis, log_spectrogram(waveform, fs), len(waveform), fs, top)
    axis.set_ylabel("kHz", color=_NEUTRAL, labelpad=2)
    axis.annotate("s", (1, 0), xycoords="axes fraction", xytext=(-1, -7), textcoords="offset points", ha="right",
                  va="top", color=_NEUTRAL)  # fmt: skip
    axis.tick_params(colors=_NEUTRAL)
    for spine in axis.spines.values():
        spine.set_visible(False)
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=_DPI, transparent=True)
    Image.open(raw).quantize(_COLORS, method=Image.Quantize.FASTOCTREE).save(small, format="png", optimize=True)
    return data_uri(small.getvalue(), "image/png")


def common_top(waveforms: Tuple[np.ndarray, ...], fs: int) -> float:
    """Level of the brightest point of all spectrograms, in dB."""
    return max(float(log_spectrogram(waveform, fs).max()) for waveform in waveforms)
