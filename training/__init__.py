"""Training of the world model and of policies, its data, and the evaluations."""
