"""Code of ours that is changed in every process of a run, as a fault would."""

import os
from pathlib import Path

# Runs at the start of every Python process that has its folder in PYTHONPATH, and changes a module
# when it has been imported.
_SITE = """
import importlib.abc, sys

class Planter(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        from importlib.machinery import PathFinder
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def planted(module):
            execute(module)
            exec({change!r}, module.__dict__)

        spec.loader.exec_module = planted
        return spec

sys.meta_path.insert(0, Planter())
"""


def plant(folder: Path, module: str, change: str) -> dict[str, str]:
    """Environment in which `change` is executed inside of `module` once it is imported."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITE.format(module=module, change=change))
    search_path = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {"PYTHONPATH": os.pathsep.join(filter(None, search_path))}
