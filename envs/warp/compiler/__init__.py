"""A compiler from MuJoCo models to fused, differentiable kernels; README.md beside this file explains it."""
