"""The vector form of a task in Gymnasium."""

import gymnasium


def vector(name, n=4, **options):
    """``n`` environments of the task ``name`` in one vector environment."""
    return gymnasium.make_vec(f"mage_diffsim/{name}-v0", num_envs=n, vectorization_mode="vector_entry_point", **options)
