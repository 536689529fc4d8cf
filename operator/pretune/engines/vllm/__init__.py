"""vLLM: its command line, releases, tactics files and log lines."""
