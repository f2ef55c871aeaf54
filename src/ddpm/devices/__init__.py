"""What the devices can do."""

from ddpm.devices.precision import device_name, resolve_precision

__all__ = ["device_name", "resolve_precision"]
