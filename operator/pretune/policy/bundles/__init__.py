"""A bundle's life: wanted, tuned, proven, imported, adopted, retired."""
