"""A platform behind the kit's hands is the same platform."""

from engine.config import EngineConfig
from engine.platform import AttentionBackend, GraphRunner, Platform
from engine.testing.checks.interposed import (
    AttentionAround,
    GraphsAround,
    Interposed,
    Parts,
    interpose,
)
from engine.testing.null import NullPlatform, null_spec


def test_every_member_of_the_contract_is_passed_on():
    """A new member that were forgotten would be answered by the contract's default."""
    for contract, around in (
        (Platform, Interposed),
        (AttentionBackend, AttentionAround),
        (GraphRunner, GraphsAround),
    ):
        members = {name for name in vars(contract) if not name.startswith("_")}
        instance = {"name", "capabilities", "attention_backends"}  # copied when it is made
        assert members - instance <= set(vars(around)), contract


def test_what_is_not_named_is_left_alone():
    inner = NullPlatform(EngineConfig())
    outer = Interposed(inner, Parts())
    assert (outer.name, outer.device) == (inner.name, inner.device)
    assert outer.capabilities is inner.capabilities
    assert outer.attention_backends is inner.attention_backends


def test_what_is_named_passes_through_the_hands():
    seen = []

    def see(part):
        seen.append(part)
        return part

    spec = interpose(null_spec(), Parts(memory=see, communicator=see, graphs=see, buckets=see))
    platform = spec.create(EngineConfig(), 0)
    found = [platform.memory(), platform.communicator((0,)), platform.graphs()]
    assert seen == found
