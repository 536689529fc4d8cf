"""What a pod template says, and its identity: pure functions over dicts."""
