"""The claim as the agent uses it: files, bundles, proofs."""
