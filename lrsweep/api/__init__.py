"""The Python API, for notebooks and programs. Use it as `lrsweep.sweep`, `lrsweep.load` and so on."""
