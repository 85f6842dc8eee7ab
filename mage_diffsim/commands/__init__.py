"""The commands of ``mage-diffsim``, each with its options; :mod:`mage_diffsim.cli` runs the one that is named."""
