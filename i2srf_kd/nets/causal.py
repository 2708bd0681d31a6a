"""What makes DPDCRN causal: norms of single frames, attention over a limited past, and layers that remember. Ours.

The published network is not causal: its instance and group norms take their statistics over all frames, and its
attention over time sees all frames. The dilated convolutions and the GRU over time look at the past only, everything
over frequency stays within a frame. The causal variant has the same parameters under the same names.
"""

from typing import List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrameNorm(nn.Module):
    """Normalise every frame over its channels and bins, then scale and shift each channel.

    This is the instant layer norm of DPCRN (arXiv 2107.05429). It has no state: a stream equals the offline network
    after an hour as in the first frame, and training on short chunks uses the statistics of long recordings. Cumulative
    statistics have neither property, and statistics per channel and frame would hide how channels compare.

    Args:
        channels: C.
        eps: added to the variance.

    Shape: ``(B, C, T, F)`` to ``(B, C, T, F)``.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, f = x.shape
        frames = x.transpose(1, 2).reshape(b * t, c, f)
        normed = F.group_norm(frames, 1, self.weight, self.bias, self.eps)
        return normed.view(b, t, c, f).transpose(1, 2)


class StreamState:
    """What the layers of a causal network remember from one chunk of frames to the next.

    The tensors have no names: layers take theirs and leave the next one in the order in which the network runs them,
    which is always the same.

    Args:
        tensors: what the previous chunk left in ``carried``; None for the first chunk, before which all is zero.

    Attributes:
        carried: the tensors for the next chunk.
    """

    def __init__(self, tensors: Optional[Sequence[Tensor]] = None):
        self._tensors = None if tensors is None else iter(tensors)
        self.carried: List[Tensor] = []

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """The next tensor from the previous chunk, of a known shape, device and type; :meth:`keep` must follow."""
        return like.new_zeros(shape) if self._tensors is None else next(self._tensors)

    def keep(self, tensor: Tensor) -> None:
        """Leave a tensor for the next chunk."""
        self.carried.append(tensor)

    def prepend(self, x: Tensor, frames: int) -> Tensor:
        """Put the ``frames`` frames before this chunk in front of it, along axis 2."""
        past = self.take(x, x.shape[0], x.shape[1], frames, x.shape[3])
        joined = torch.cat([past, x], dim=2)
        self.keep(joined[:, :, -frames:])
        return joined


def attention_mask(x: Tensor, window: int, state: Optional[StreamState] = None) -> Tensor:
    """Which frames each frame attends to: itself and up to ``window - 1`` before it.

    Args:
        x: the chunk, ``(B, C, T, F)``.
        window: frames that can be seen.
        state: in a stream; ``window - 1`` frames from before the chunk then precede the keys, and the number of those
            that exist is counted here.

    Returns:
        bool ``(T, T)``, in a stream ``(T, window - 1 + T)``; true where a frame (row) sees another (column).
    """
    frames = x.shape[2]
    row = torch.arange(frames, device=x.device)[:, None]
    if state is None:
        age = row - row.T
        return (age >= 0) & (age < window)
    column = torch.arange(window - 1 + frames, device=x.device)
    seen = state.take(x, 1)
    state.keep((seen + frames).clamp(max=window - 1))
    in_window = (column >= row) & (column < row + window)
    return in_window & (column >= window - 1 - seen)
