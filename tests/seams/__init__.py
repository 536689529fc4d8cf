"""A part and an engine that only the tests have (docs/dev/adding-a-part.md, adding-an-engine.md)."""
