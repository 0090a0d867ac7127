"""Several subjects' adapters trained in one batch; subjects join and leave at any step."""
