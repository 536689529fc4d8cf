"""What a pod template says, and who it is: pure functions over dicts."""
