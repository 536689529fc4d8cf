"""What to do about one cache, given what was observed. Pure."""
