"""Faults inside a worker's process, injected by a `sitecustomize` on PYTHONPATH when a module is loaded."""

import os
from collections.abc import Mapping
from pathlib import Path

_SITE = """
import importlib.abc, importlib.util, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "lrsweep.training.engines.pack_run":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            step = module.PackRun._step
            def faulty(pack):
                step(pack)
                for slot in pack._slots.values():
                    if slot.trial.number == {trial} and slot.step == {step}:
                        {fault}
            module.PackRun._step = faulty
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def at_step(folder: Path, trial: int, step: int, fault: str) -> Mapping[str, str]:
    """An environment in which the Python statement `fault` runs once trial `trial`, packed, has trained step `step`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        _SITE.replace("{trial}", str(trial)).replace("{step}", str(step)).replace("{fault}", fault)
    )
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
