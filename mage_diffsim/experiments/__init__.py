"""Experiments: sweeps of training cells in worker processes, their statistics, tables and figures."""
