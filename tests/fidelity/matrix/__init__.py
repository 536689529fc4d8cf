"""Each vLLM release's own warm-up code as pods of the real cluster, fed by the real operator, in every situation: what it did is
docs/compatibility.md.

`cells` names the situations, `expected` what the facts say of each, `stage` is what they are played on, `play` plays them, `outcome`
is what is kept of each, `judge` compares, `document` writes. `make fidelity` does all of it, tests/cluster/test_fidelity.py what CI has
the time for.
"""
