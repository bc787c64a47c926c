"""The files of a sweep: where they are, and how they are written so that a kill leaves each whole or absent."""
