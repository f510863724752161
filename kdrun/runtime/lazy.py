"""TensorFlow under its usual name, imported when it is first used.

For modules of which something is to be known before TensorFlow is loaded: an objective's keys and facts.
"""

from importlib import import_module
from typing import Any


class _AtFirstUse:
    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


tf: Any = _AtFirstUse("tensorflow")
