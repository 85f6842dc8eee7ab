"""Modules of gradient_quality.py, one per question: accuracy, sweep, soak."""
