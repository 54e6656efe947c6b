"""The training loop and everything that it needs: optimizers, checkpoints, logging and stopping."""
