"""Device selection, XPUs and sharding for Lightning, and work that processes share.

Importing the package registers "xpu" and "fsdp2" in Lightning. The package needs only torch and Lightning, so another
project can copy the folder as it is.
"""

from . import sharding, xpu
from .allocator import reuse_freed_memory
from .precision import device_name
from .processes import map_over_processes
from .selection import count_devices, lightning_arguments
from .sharding import shard
from .transfer import copies_asynchronously, to_device

__all__ = [
    "copies_asynchronously",
    "count_devices",
    "device_name",
    "lightning_arguments",
    "map_over_processes",
    "reuse_freed_memory",
    "shard",
    "to_device",
]

sharding.register()
xpu.register()
