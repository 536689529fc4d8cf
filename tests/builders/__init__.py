"""Builders of what tests need: templates, caches, Jobs, pods, and what the controller observes.

A test shows only what matters to it: `engine().gpus(8).args("--tp=8")`,
`job("b-default").failed("BackoffLimitExceeded")`, `Consumer("a").held()`.
"""
