"""Random numbers and averaged weights that a resumed run goes on with."""

import random

import numpy as np
import torch

from i2srf_kd.training import checkpoint
from i2srf_kd.training.state import AveragedWeights, rng_state, set_rng_state


def test_rng_round_trip():
    state = rng_state()
    drawn = [(random.random(), np.random.rand(), float(torch.rand(())))]
    set_rng_state(checkpoint.plain(state))
    drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


def test_averaged_weights_follow_their_formula():
    model = torch.nn.Linear(2, 1, bias=False)
    expected = model.weight.detach().clone()
    ema = AveragedWeights(model, 0.5)
    for n in range(8):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    raw = model.weight.detach().clone()
    with ema.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight.detach(), raw)
