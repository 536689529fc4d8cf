"""The webhook's process: admission of pods."""
