"""The engine as the agent sees it: its files, its versions, its readiness."""
