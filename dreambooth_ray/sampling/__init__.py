"""Generate images: requests, denoising steps, solvers."""
