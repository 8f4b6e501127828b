"""Errors of the device runtime. The message of each is one sentence for the user."""


class DeviceError(Exception):
    """A bundle, image or key that cannot be used; the message says which, and why."""

    exit_code = 2


class BundleError(DeviceError):
    """A bundle that is incomplete, differs from what was signed, or is not for this runtime."""


class ImageError(DeviceError):
    """An image that cannot be used."""
