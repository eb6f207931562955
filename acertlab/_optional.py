"""Optional libraries: one that is missing is named with the line that installs it, and none brings what nobody uses."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def need(extra: str, what: str, *libraries: str) -> None:
    """Refuse to go on where ``libraries`` of an extra of `pyproject.toml` are missing; none is imported.

    ImportError names them, ``what`` needs them, the extra and the line to write.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        are = "which are" if len(missing) > 1 else "which is"
        line = f'pip install "acertlab[{extra}]"'
        raise ImportError(f"{what} needs {', '.join(missing)}, {are} not installed: {line}", name=missing[0])


class _Grammar(ModuleType):
    """`rfc3987_syntax` until somebody uses it."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__path__ = spec, list(spec.submodule_search_locations or ())

    def is_valid_syntax(self, *args: Any) -> bool:
        return self._loaded().is_valid_syntax(*args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `inspect` looks at all modules: that is no use of it
            raise AttributeError(name)
        return getattr(self._loaded(), name)

    def _loaded(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return import_module(self.__name__)


def spare_the_grammar() -> None:
    """Let jsonschema load without the grammar of internationalised web addresses until it checks one.

    That grammar is compiled when it is imported, in 1.3 s and more. nbformat imports jsonschema, and papermill and the
    figures' display import nbformat: so every kernel and every worker of a sweep paid it, and none has such addresses.
    """
    name = "rfc3987_syntax"
    if name not in sys.modules and (spec := find_spec(name)):
        sys.modules[name] = _Grammar(spec)
