"""What happens after an optimizer step: metrics, validation, samples, loggers."""
