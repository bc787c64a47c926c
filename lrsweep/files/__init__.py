"""The files of a sweep: their paths, and writing them so that a kill leaves each file complete or absent."""
