"""The Acme NPU's platform with something else in its place: broken on purpose, or with more."""

from dataclasses import replace


def with_platform(good, **members):
    """The good spec, its platform a subclass with other members."""

    def create(config, rank):
        from engine_acme_npu.platform import AcmePlatform

        return type("Broken", (AcmePlatform,), members)(config, rank)

    return replace(good, create=create)


def with_attention(good, **members):
    """The good spec, its attention backend a subclass with other members."""
    from engine_acme_npu.attention import AcmeAttention

    backend = type("Broken", (AcmeAttention,), members)
    return with_platform(good, attention=lambda self, spec: backend(spec, self.device))
