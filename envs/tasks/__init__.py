"""The tasks that come with the package, one file each; :mod:`mage_diffsim.envs.registry` names them."""
