"""Serving pods: what each is given, whether it starts, and how warm."""
