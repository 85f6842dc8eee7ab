"""What the backends make of MJCF models: coverage, agreement with MuJoCo C, cost; for ``mage-diffsim check-model``."""
