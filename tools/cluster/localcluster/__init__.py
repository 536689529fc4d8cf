"""A real Kubernetes on one machine, from programs built here: for trying pretune out and for its tests. Stdlib only."""
