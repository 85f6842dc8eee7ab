"""Modules of against_mujoco.py."""
