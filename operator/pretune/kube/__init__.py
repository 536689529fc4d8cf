"""Kubernetes' API: its client, watches and lease."""
