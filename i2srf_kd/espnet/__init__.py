"""The one place that knows ESPnet. To import it registers separator and criteria in ESPnet's choices.

Whoever imports this package has them: a script before it calls ESPnet, a process that was spawned, and
:mod:`i2srf_kd.espnet.run` before any program of ESPnet.
"""

import importlib
import importlib.util
import sys
from typing import Any


def _load_when_used(name: str) -> None:
    """Let ``import name`` do nothing until the module is asked for something that it defines."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)

    def load(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    module.__getattr__ = load  # type: ignore[method-assign]
    sys.modules[name] = module


# ESPnet's tokenizers of text import it, and it asks the network for data sets of NLTK while it is imported.
_load_when_used("g2p_en")

importlib.import_module("i2srf_kd.espnet.registry")
