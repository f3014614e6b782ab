"""Every error the engine raises on purpose.

EngineError
├── ConfigError          the user asked for something contradictory or unknown
├── RequestError         one request asks for something invalid; the engine goes on
│   └── CapacityError    it would never fit, however long we waited
├── ModelError           the model's folder, files or architecture cannot be used
├── UnsupportedError     the platform cannot do it; says what can
├── PluginError          a plugin could not be loaded, or speaks another contract version
└── EngineDeadError      the engine process ended; its requests end with this
"""


class EngineError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(EngineError, ValueError): ...


class RequestError(EngineError, ValueError):
    """`parameter` names the field at fault, where there is one."""

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class CapacityError(RequestError): ...


class ModelError(EngineError): ...


class UnsupportedError(EngineError): ...


class PluginError(EngineError): ...


class EngineDeadError(EngineError): ...
