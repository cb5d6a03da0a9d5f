"""The dreamed world: checkpoints, the network, the three tasks, step-wise dreaming. Import the modules."""
