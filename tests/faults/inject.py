"""Faults inside a worker's process, from outside: a `sitecustomize` on PYTHONPATH that puts them in as a module is loaded."""

import os
from collections.abc import Mapping
from pathlib import Path

_SITE = """
import importlib.abc, importlib.util, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "lrsweep.training.engines.packed":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            step = module._Lockstep._step
            def faulty(pack):
                step(pack)
                for member in pack._members.values():
                    if member.trial.number == {trial} and member.step == {step}:
                        {fault}
            module._Lockstep._step = faulty
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def at_step(folder: Path, trial: int, step: int, fault: str) -> Mapping[str, str]:
    """The environment in which the Python statement `fault` is run once trial `trial` has trained step `step`, packed."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        _SITE.replace("{trial}", str(trial)).replace("{step}", str(step)).replace("{fault}", fault)
    )
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
