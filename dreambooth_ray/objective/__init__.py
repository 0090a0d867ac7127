"""The training loss and its random numbers."""
