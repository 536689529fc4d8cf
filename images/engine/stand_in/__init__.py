"""A stand-in for `vllm serve`: the folders, files, log lines, crashes and hangs that vLLM shows to whoever runs it, by release.

It loads no model and tunes nothing. The test `test_stand_in_against_rehearsal.py` holds each release that it plays to vLLM's and
FlashInfer's own code.
Standard library only, Python 3.8 and later.
"""
