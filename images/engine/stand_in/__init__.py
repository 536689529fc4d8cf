"""A stand-in for `vllm serve`: the folders, files, log lines, crashes and hangs that vLLM shows to whoever runs it, by release.

It loads no model and tunes nothing. What it imitates is written in the project's facts about vLLM; the test
`test_stand_in_against_rehearsal.py` holds its newest release against vLLM's and FlashInfer's own code.
Standard library only, Python 3.8 and later.
"""
