"""Word error rate of a recogniser, and the score of the L3DAS challenges for speech enhancement.

    (STOI + (1 - WER)) / 2, STOI and WER each clipped to [0, 1]

The rules are those of the challenge: the recogniser is ``facebook/wav2vec2-base-960h`` with greedy decoding, and the
reference of the WER is **what it hears in the clean speech**, not a transcript. An utterance in whose clean speech it
hears nothing is skipped: both measures are undefined there.

Needs ``transformers`` and ``editdistance`` (``pip install i2srf_kd[asr]``) and the recogniser's files, from a folder or
from the hub.
"""

import importlib.util
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from i2srf_kd.system.errors import UserError

METRICS: Tuple[str, ...] = ("wer", "challenge")
CHALLENGE_MODEL = "facebook/wav2vec2-base-960h"
PACKAGES = ("transformers", "editdistance")
RATE = 16000
"""Sampling rate in Hz of the recogniser."""
# Only used in training, and not part of the published checkpoint.
_NOT_NEEDED = {"wav2vec2.masked_spec_embed"}


def missing_packages() -> List[str]:
    """Packages that a recogniser needs and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Substituted, inserted and missing words per word of the reference; may exceed 1.

    Returns:
        NaN for a reference without words.
    """
    import editdistance

    words = reference.split()
    if not words:
        return math.nan
    return int(editdistance.eval(words, hypothesis.split())) / len(words)


def challenge_scores(stoi: float, reference: str, hypothesis: str) -> Dict[str, float]:
    """Measures of one utterance.

    Args:
        stoi: of the estimate, a fraction.
        reference: what the recogniser hears in the clean speech.
        hypothesis: what it hears in the estimate.

    Returns:
        ``wer``, clipped to [0, 1], and ``challenge``; NaN where the challenge skips an utterance.
    """
    wer = min(word_error_rate(reference, hypothesis), 1.0)
    if math.isnan(wer):
        return {"wer": wer, "challenge": math.nan}
    if math.isnan(stoi):  # too little speech for STOI, which is no reason to skip
        stoi = 0.0
    return {"wer": wer, "challenge": (min(max(stoi, 0.0), 1.0) + 1.0 - wer) / 2}


class Recogniser:
    """A wav2vec 2.0 model with a CTC output, decoded greedily.

    Waveforms share a batch only if they are equally long. The published model was trained without an attention mask
    and normalises its first layer over time, so that padding would change what it hears; without padding a batch
    gives what one waveform after the other gives.

    Args:
        model: folder that ``save_pretrained`` wrote (weights, configuration, processor), or a name on the hub.
        device: as torch names it; default: a GPU if there is one.
        batch_size: waveforms at a time.

    Raises:
        UserError: packages are missing, or the model is not there, incomplete or of another kind.
    """

    def __init__(self, model: str, device: Optional[str] = None, batch_size: int = 8):
        if missing_packages():
            raise UserError(
                f"speech recognition needs {' and '.join(missing_packages())}: pip install i2srf_kd[asr], or leave "
                "--asr_model out"
            )
        import torch

        self._torch = torch
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        self._processor, network = _load(model)
        self._model = network.float().eval().to(self.device)
        self._shortest = _receptive_field(network.config.conv_kernel, network.config.conv_stride)

    def __call__(self, waves: Sequence[ArrayLike], fs: int) -> List[str]:
        """Transcribe waveforms.

        Args:
            waves: ``(samples,)`` each, floating point.
            fs: sampling rate in Hz, 16000.

        Returns:
            What is heard in each, in the order given; nothing in what is too short for the model's first frame.

        Raises:
            ValueError: other sampling rate.
        """
        if fs != RATE:
            raise ValueError(f"the recogniser needs {RATE} Hz but the audio has {fs} Hz: resample it first")
        arrays = [np.asarray(wave, dtype=np.float32) for wave in waves]
        by_length: Dict[int, List[int]] = {}
        for index, array in enumerate(arrays):
            by_length.setdefault(len(array), []).append(index)
        texts = [""] * len(arrays)
        for length, indices in by_length.items():
            if length < self._shortest:
                continue
            for first in range(0, len(indices), self.batch_size):
                batch = indices[first : first + self.batch_size]
                for index, text in zip(batch, self._transcribe([arrays[i] for i in batch]), strict=True):
                    texts[index] = text
        return texts

    def _transcribe(self, waves: Sequence[np.ndarray]) -> List[str]:
        values = self._processor(list(waves), sampling_rate=RATE, return_tensors="pt").input_values
        with self._torch.inference_mode():
            logits = self._model(values.to(self.device)).logits
        return list(self._processor.batch_decode(logits.argmax(dim=-1).cpu()))


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one output frame of a stack of convolutions sees."""
    length = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        length = (length - 1) * stride + kernel
    return length


def _load(model: str) -> Tuple[Any, Any]:
    """Processor and network of a folder or from the hub."""
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor
    from transformers.utils import logging

    local = Path(model).is_dir()
    if not local and (model.count("/") > 1 or model.startswith((".", "/", "~"))):
        raise UserError(f"--asr_model {model}: no such folder; give one that holds a wav2vec 2.0 model, or a hub name")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        processor = Wav2Vec2Processor.from_pretrained(model, local_files_only=local)
        loaded: Any = Wav2Vec2ForCTC.from_pretrained(model, local_files_only=local, output_loading_info=True)
        network, report = loaded  # its annotation leaves out the report
    except Exception as error:  # its errors (files, network, format) share no base class
        hint = "is the folder complete?" if local else "without a connection to the hub, give a local folder"
        raise UserError(f"--asr_model {model}: cannot be loaded as a wav2vec 2.0 model ({error}); {hint}") from error
    absent = sorted(set(report["missing_keys"]) - _NOT_NEEDED)
    if absent:
        raise UserError(
            f"--asr_model {model}: lacks {len(absent)} weights, such as {absent[0]}; it must be fine-tuned with CTC"
        )
    return processor, network
