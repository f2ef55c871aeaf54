"""What the devices can do, and work that is shared between them."""

from ddpm.devices.precision import device_name, resolve_precision
from ddpm.devices.processes import map_over_processes

__all__ = ["device_name", "map_over_processes", "resolve_precision"]
