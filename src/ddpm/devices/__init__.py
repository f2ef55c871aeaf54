"""What the devices can do, XPUs and sharding for Lightning, and work that is shared between processes.

Importing this makes "xpu" and "fsdp2" known to Lightning. It needs torch and Lightning alone: another project can copy
the folder as it is.
"""

from . import sharding, xpu
from .precision import device_name
from .processes import map_over_processes
from .selection import count_devices, lightning_arguments
from .sharding import shard

__all__ = ["count_devices", "device_name", "lightning_arguments", "map_over_processes", "shard"]

sharding.register()
xpu.register()
