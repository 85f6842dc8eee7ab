"""Unitree Go1, a robot on four legs: its model and task (licences: see README.md)."""
