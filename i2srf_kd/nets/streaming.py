"""A causal DPDCRN on a spectrum that arrives in chunks, with its memory as explicit tensors.

    step = StreamingDPDCRN(network)
    state = step.initial_state()
    for chunk in chunks:  # (1, planes, any number of frames, bins)
        enhanced, *state = step(chunk, *state)

The chunks of ``enhanced`` are what ``network`` makes of the whole spectrum.
"""

from typing import List, Tuple

import torch
from torch import Tensor, nn

from i2srf_kd.nets.causal import StreamState
from i2srf_kd.nets.dpdcrn import DPDCRN


class StreamingDPDCRN(nn.Module):
    """A function from chunk and state to enhanced chunk and state; it keeps nothing itself.

    Args:
        network: a causal one; shared, not copied.

    Raises:
        ValueError: the network is not causal.
    """

    def __init__(self, network: DPDCRN):
        super().__init__()
        if not network.causal:
            raise ValueError("the network is not causal: it cannot run on a stream; build it with causal=True")
        self.network = network

    def forward(self, spectrum: Tensor, *state: Tensor) -> Tuple[Tensor, ...]:
        """Enhance the next frames.

        Args:
            spectrum: ``(B, input_channels, T, F)``, any T.
            state: what the previous call returned after the spectrum, :meth:`initial_state` before the first one.

        Returns:
            The enhanced spectrum ``(B, 2, T, F)`` and the state, in one tuple. Sizes of the state do not depend on T.
        """
        memory = StreamState(state)
        return (self.network(spectrum, state=memory).spectrum, *memory.carried)

    @torch.no_grad()
    def initial_state(self, batch: int = 1) -> List[Tensor]:
        """Zeros of the sizes that the network needs: nothing has been heard yet.

        Args:
            batch: B, streams side by side.
        """
        frame = self.network.decoder.mask.weight.new_zeros(batch, self.network.input_channels, 1, self.network.bins)
        memory = StreamState()
        self.network(frame, state=memory)
        return [tensor.new_zeros(tensor.shape) for tensor in memory.carried]
