"""Programs that run in another trainer's Python, where lrsweep is not: they import that trainer, and nothing of ours.

Each has a trainer read and tokenise the rows of a config with its own code, and writes them with `rows_file`. They are
started as `python FILE CONFIG FOLDER`.
"""
