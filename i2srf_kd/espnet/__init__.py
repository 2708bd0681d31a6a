"""The one place that knows ESPnet. To import it registers separator and criteria in ESPnet's choices.

Whoever imports this package has them: a script before it calls ESPnet, a process that was spawned, and
:mod:`i2srf_kd.espnet.run` before any program of ESPnet.
"""

import importlib
import importlib.util
import itertools
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, List, Optional


def _load_when_used(name: str) -> None:
    """Let ``import name`` do nothing until the module is asked for something that it defines."""
    spec: Optional[ModuleSpec] = None
    places: Optional[List[str]] = None
    for part in itertools.accumulate(name.split("."), "{}.{}".format):  # without importing the packages around it
        spec = PathFinder.find_spec(part, places)
        places = list(spec.submodule_search_locations or ()) if spec else []
    if spec is None or name in sys.modules:
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


# ESPnet's tokenizers of text import both. The first asks the network for data sets of NLTK while it is imported, the
# second takes a quarter of the time that importing ESPnet's tasks takes.
_load_when_used("g2p_en")
_load_when_used("tacotron_cleaner.cleaners")

importlib.import_module("i2srf_kd.espnet.registry")
