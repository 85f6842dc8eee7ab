"""Makes operations written outside torch (in JAX, as Warp kernels, as any function) torch operations with gradients.

The bridges know nothing of learning or physics. Importing them imports neither jax nor warp; each is imported when it
is first used.
"""

from mage_diffsim.bridges.columns import ColumnsOp
from mage_diffsim.bridges.fd import FiniteDifference
from mage_diffsim.bridges.jax import from_jax
from mage_diffsim.bridges.op import Op
from mage_diffsim.bridges.report import backend_report
from mage_diffsim.bridges.warp import from_warp

__all__ = [
    "ColumnsOp",
    "FiniteDifference",
    "Op",
    "backend_report",
    "from_jax",
    "from_warp",
]
