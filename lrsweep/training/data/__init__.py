"""Rows: read from files, brought into one form, turned into tokens, padded into batches."""
