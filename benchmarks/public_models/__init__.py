"""Modules of model_coverage.py: which public models there are, and how their files are had."""
