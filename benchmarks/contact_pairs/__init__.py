"""Contacts of two geoms alone: what backend ``warp`` finds, and MuJoCo C."""
