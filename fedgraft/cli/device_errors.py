"""Errors of the device runtime, which knows no other room, as mistakes in the input."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedgraft.core.errors import UserError


@contextmanager
def device_errors() -> Iterator[None]:
    """Inside, a DeviceError becomes a UserError with the same sentence."""
    from fedgraft.device.errors import DeviceError

    try:
        yield
    except DeviceError as error:
        raise UserError(str(error)) from error
