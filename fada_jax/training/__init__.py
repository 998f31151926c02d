"""What every system shares: losses, shared steps, optimizers, states, the loop, and checkpoints."""
