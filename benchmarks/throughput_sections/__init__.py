"""The sections of ``benchmarks/throughput.py``, one module per question, and what they share."""
