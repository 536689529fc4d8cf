"""The AutotuneCache API in Python: its names, spec, status and reasons."""
