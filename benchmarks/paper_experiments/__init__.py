"""The experiments of ``benchmarks/paper.py``, one module per question, and what they share."""
