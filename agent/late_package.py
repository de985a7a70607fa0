"""A package whose modules can be imported before its `__init__` runs, which is when somebody asks for what is there."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any, Final

_RUNNING: Final = RLock()  # whoever asks while another thread runs an `__init__` waits until all is there


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if find_spec(f"{self.__name__}.{name}") is not None:
            return importlib.import_module(f"{self.__name__}.{name}")
        with _RUNNING:
            if "__begun__" not in vars(self):  # it may ask itself for what is not there yet
                self.__begun__ = True
                try:
                    self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
                except BaseException:
                    del self.__begun__  # whoever asks next is told the same, not that something is not there
                    raise
                self.__class__ = ModuleType  # type: ignore[assignment]  # what is not there now is not there
        return ModuleType.__getattribute__(self, name)


def defer(name: str) -> None:
    """Have package `name` be one of these, unless it is imported already or not installed."""
    if name in sys.modules or (spec := find_spec(name)) is None:
        return
    sys.modules[name] = package = module_from_spec(spec)
    package.__class__ = _Package
