"""Ours and four peers on one machine: environments, models, workers, measurements, tables."""
