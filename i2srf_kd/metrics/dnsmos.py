"""DNSMOS P.835: predicted opinion scores without a reference (Reddy et al., ICASSP 2022, arXiv 2110.01763).

Optional. It needs the package ``onnxruntime`` and the weights ``sig_bak_ovr.onnx``, which are not part of this project:
they are published in Microsoft's DNS-Challenge repository. The procedure and the polynomials below are the published
ones (segments of 9.01 s every second, non-personalised polynomials). Numbers with the real weights were not compared
here; the tests use a stand-in model with the same interface.
"""

from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
from numpy.typing import ArrayLike

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

METRICS: Tuple[str, ...] = ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl")
_RATE = 16000
_SEGMENT_SECONDS = 9.01
# Highest power first, in the order of the model's outputs: speech, background, overall.
_POLYNOMIALS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class DNSMOS:
    """Scorer that holds one loaded model.

    Args:
        model_path: ``sig_bak_ovr.onnx``; input ``input_1`` of shape ``(1, 144160)``, output ``(1, 3)``.

    Raises:
        UserError: the file is absent or no such model, or ``onnxruntime`` is not installed.
    """

    def __init__(self, model_path: PathLike):
        path = Path(model_path)
        if not path.is_file():
            raise UserError(f"{path}: no such file; get sig_bak_ovr.onnx from Microsoft's DNS-Challenge repository")
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("DNSMOS needs the package onnxruntime: install it or leave --dnsmos_model out") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UserError(f"{path}: onnxruntime cannot load it ({error}); is the download complete?") from error
        if [entry.name for entry in self._session.get_inputs()] != ["input_1"]:
            raise UserError(f"{path}: not the P.835 model, whose one input is called input_1; use sig_bak_ovr.onnx")

    def __call__(self, waveform: ArrayLike, fs: int) -> Dict[str, float]:
        """Score one waveform.

        Args:
            waveform: ``(samples,)``, floating point in [-1, 1]; repeated until it fills a segment.
            fs: sampling rate, 16000.

        Returns:
            ``dnsmos_sig``, ``dnsmos_bak``, ``dnsmos_ovrl``, means over the segments.

        Raises:
            ValueError: other sampling rate or no samples.
        """
        if fs != _RATE:
            raise ValueError(f"DNSMOS needs {_RATE} Hz but the audio has {fs} Hz: resample it first")
        audio = np.asarray(waveform, dtype=np.float32).ravel()
        if not audio.size:
            raise ValueError("waveform has no samples")
        length = int(_SEGMENT_SECONDS * _RATE)
        while len(audio) < length:
            audio = np.concatenate([audio, audio])
        count = int(len(audio) // _RATE - _SEGMENT_SECONDS) + 1
        segments = [audio[start * _RATE : start * _RATE + length] for start in range(count)]
        raw = np.array([self._session.run(None, {"input_1": segment[None]})[0][0] for segment in segments])
        scores = [np.polyval(terms, column).mean() for terms, column in zip(_POLYNOMIALS, raw.T, strict=True)]
        return {name: float(score) for name, score in zip(METRICS, scores, strict=True)}
