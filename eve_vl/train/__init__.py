"""Training: optimisers, weight averages, checkpoints, process group, layouts, and the only training
loop."""
