"""The controller's process: watches, queue, reconcile."""
