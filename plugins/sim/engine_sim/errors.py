"""What goes wrong on the device.

SimError
├── InjectedError         a fault that was asked for
├── DtypeError            a dtype that the device does not have
├── MixedDevicesError     operands of one operation live in different places
├── SynchronizationError  a wait for the device where none is allowed
├── ProgramError          an operation, or a step's shape, that no program was made for
└── DeviceLostError       the device is gone; noticed by whoever waits for it

Running out of memory is torch's own OutOfMemoryError, as on other devices.
"""


class SimError(RuntimeError):
    """Base of the device's errors."""


class InjectedError(SimError): ...


class DtypeError(SimError): ...


class MixedDevicesError(SimError): ...


class SynchronizationError(SimError): ...


class ProgramError(SimError): ...


class DeviceLostError(SimError): ...
