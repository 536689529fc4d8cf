"""A real Kubernetes on one machine, for demo and tests.

Standard library only.
"""
