"""Reading chunks plainly: every file whole, then the chunk cut out of it."""

from typing import Callable, Dict, Iterator, List, Mapping

import numpy as np
import soundfile
import torch

from i2srf_kd.data.chunks import Batch


def whole_file_batches(
    files: Mapping[str, Mapping[str, str]], make_batches: Callable[[int], List[Batch]], epoch: int
) -> Iterator[Dict[str, torch.Tensor]]:
    """Batches of an epoch, by name of the signal ``(B, S)``.

    Args:
        files: by name of the signal and utterance.
        make_batches: epoch to chunks.
    """
    for batch in make_batches(epoch):
        signals: Dict[str, List[np.ndarray]] = {name: [] for name in files}
        for utt_id, start, length in batch:
            for name, chunks in signals.items():
                audio, _ = soundfile.read(files[name][utt_id], dtype="float32")
                chunks.append(audio[start : start + length])
        yield {name: torch.from_numpy(np.stack(chunks)) for name, chunks in signals.items()}
