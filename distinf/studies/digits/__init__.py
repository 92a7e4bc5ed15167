"""Handwritten digits from files, and the two small networks of data attribution's benchmarks."""
