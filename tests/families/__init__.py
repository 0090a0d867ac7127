"""What model families are held against: tiny models, reference latents, recorded steps."""
