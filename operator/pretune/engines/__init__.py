"""What pretune knows of each inference engine."""
