"""Enhancing files with an exported model in onnxruntime, where PyTorch is not installed or would only cost time."""

import os
from pathlib import Path
from typing import Optional

import numpy as np

from i2srf_kd.audio.level import with_mixture
from i2srf_kd.audio.resample import at_another_rate
from i2srf_kd.export.onnx_runtime import OnnxEnhancer
from i2srf_kd.export.runtimes import check_weights
from i2srf_kd.system.config import read_yaml


class OnnxFileEnhancer:
    """What :class:`i2srf_kd.inference.files.Windows` needs of an enhancer, without PyTorch.

    Args:
        file: an ONNX file in an exported folder.
        num_threads: CPU threads (default: ``OMP_NUM_THREADS``, or all).

    Attributes:
        fs: sampling rate of the model in Hz.
        num_mics: channels that a recording must have at least.
        kept: share of the mixture in the output (:func:`i2srf_kd.audio.level.kept_share`).

    Raises:
        UserError: the file is no model, or was made of other weights than the folder's.
    """

    def __init__(self, file: Path, num_threads: Optional[int] = None):
        self._model = OnnxEnhancer(file, num_threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or None)
        check_weights(file, self._model.weights_sha256, read_yaml(file.parent / "config.yaml").get("weights_sha256"))
        self.fs = self._model.fs
        self.num_mics = self._model.num_mics
        self.kept = 0.0

    def enhance_array(self, wave: np.ndarray, fs: int) -> np.ndarray:
        """Enhance ``(samples,)`` or ``(samples, channels)`` at ``fs`` Hz in one piece; float32 ``(samples,)``."""
        enhanced = at_another_rate(lambda piece: self._model(piece, self.fs), wave, fs, self.fs)
        return with_mixture(enhanced, wave, self.kept, self._model.ref_channel)
