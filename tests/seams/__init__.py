"""A part and an engine that only the tests have: what it takes to add one (docs/dev/adding-a-part.md, adding-an-engine.md)."""
