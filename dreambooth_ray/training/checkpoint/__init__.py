"""Complete training state: saved, kept, restored, converted."""
