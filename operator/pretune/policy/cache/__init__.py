"""The cache itself: its claim, status, warnings, agent and end."""
