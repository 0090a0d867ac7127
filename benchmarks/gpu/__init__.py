"""What only a GPU can show: `python -m benchmarks.gpu`. Needs no Ray and no network."""
