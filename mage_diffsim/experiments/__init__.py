"""Experiments: sweeps of training cells in worker processes, their statistics, figures and words."""
