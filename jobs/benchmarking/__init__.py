"""What `jobs/benchmark.py` measures, and with what."""
