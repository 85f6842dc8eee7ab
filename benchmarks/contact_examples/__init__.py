"""Modules of contact_gradients.py: one per example, each with `measure` and `paint`."""
