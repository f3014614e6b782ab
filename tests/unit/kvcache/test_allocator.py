"""The allocator against a model: who holds which block, and what each block contains."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kvcache import Allocator, BlockPool
from engine.params import SamplingParams
from engine.request import Request

SIZE = 4


def ask(prompt, key=1, salt="", leader=None, **params):
    return Request(
        key=key,
        id=str(key),
        index=0,
        prompt=tuple(prompt),
        params=SamplingParams(**params),
        seed=0,
        max_tokens=100,
        cache_salt=salt,
        leader=leader,
    )


@pytest.fixture
def allocator():
    return Allocator(BlockPool(8), SIZE, reuse=True, caching=True)


def compute(allocator, request):
    """Admit and compute the whole prompt."""
    allocator.adopt_prefix(request)
    reservation = allocator.reserve(request, len(request))
    request.computed = len(request)
    allocator.remember(request)
    return reservation


def test_a_second_request_shares_the_full_blocks_of_an_equal_prefix(allocator):
    compute(allocator, first := ask(range(10)))
    allocator.adopt_prefix(second := ask([*range(8), 99], key=2))
    assert second.blocks == first.blocks[:2]
    assert second.computed == 8


def test_the_last_token_of_a_prompt_is_never_taken_from_the_cache(allocator):
    compute(allocator, ask(range(8)))
    allocator.adopt_prefix(second := ask(range(8), key=2))
    assert second.computed == 4


def test_a_block_is_not_shared_when_an_earlier_token_differs(allocator):
    compute(allocator, ask(range(12)))
    allocator.adopt_prefix(second := ask([7, *range(1, 12)], key=2))
    assert second.computed == 0


def test_tenants_with_different_salts_share_nothing(allocator):
    compute(allocator, ask(range(12), salt="a"))
    allocator.adopt_prefix(second := ask(range(12), key=2, salt="b"))
    assert second.computed == 0


def test_a_prompt_whose_logprobs_are_wanted_is_computed_whole(allocator):
    compute(allocator, ask(range(12)))
    allocator.adopt_prefix(second := ask(range(12), key=2, prompt_logprobs=1))
    assert second.computed == 0


def test_without_caching_nothing_is_found():
    allocator = Allocator(BlockPool(8), SIZE, reuse=True, caching=False)
    compute(allocator, ask(range(12)))
    allocator.adopt_prefix(second := ask(range(12), key=2))
    assert second.computed == 0


def test_a_fork_copies_the_last_block_when_it_is_written_and_shares_the_others(allocator):
    compute(allocator, leader := ask(range(6)))
    allocator.fork(leader, sibling := ask(range(6), key=2))
    shared = leader.blocks[1]
    assert sibling.computed == 5
    reservation = allocator.reserve(sibling, 6)
    assert sibling.blocks[0] == leader.blocks[0]
    assert reservation.copies == ((shared, sibling.blocks[1]),)
    assert (reservation.blocks, reservation.blocks_from) == ((sibling.blocks[1],), 1)
    assert leader.blocks[1] == shared
    assert allocator.reserve(leader, 7).copies == ()  # now alone: written in place


def test_the_leader_copies_when_it_writes_first(allocator):
    compute(allocator, leader := ask(range(6)))
    allocator.fork(leader, sibling := ask(range(6), key=2))
    shared = sibling.blocks[1]
    assert allocator.reserve(leader, 7).copies == ((shared, leader.blocks[1]),)
    assert allocator.reserve(sibling, 6).copies == ()


def test_reserving_more_than_is_free_changes_nothing(allocator):
    compute(allocator, first := ask(range(20)))
    compute(allocator, ask(range(50, 58), key=2))
    before = list(first.blocks)
    assert allocator.reserve(first, 28) is None
    assert first.blocks == before
    assert allocator.reserve(first, 24, spare=1) is None
    assert allocator.reserve(first, 24) is not None


class Script(RuleBasedStateMachine):
    """Random admissions, forks, decodes and releases over a small pool and alphabet."""

    def __init__(self):
        super().__init__()
        self.allocator = Allocator(BlockPool(10), SIZE, reuse=True, caching=True)
        self.requests = []
        self.content = {}  # block: the tokens written to it, by offset
        self.key = 0

    def write(self, request, stop):
        """What a device would do; False when there is no room."""
        start = request.computed
        reservation = self.allocator.reserve(request, stop)
        if reservation is None:
            return False
        assert reservation.blocks == tuple(request.blocks[reservation.blocks_from :])
        for source, target in reservation.copies:
            self.content[target] = dict(self.content[source])
        for position in range(start, stop):
            block = request.blocks[position // SIZE]
            assert self.allocator.pool.count(block) == 1, "a shared block is written"
            tokens = self.content.setdefault(block, {})
            tokens[position % SIZE] = request.tokens[position]
        request.computed = stop
        self.allocator.remember(request)
        return True

    def begin(self, request):
        if self.write(request, len(request)):
            self.requests.append(request)
        else:
            self.allocator.release(request)

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=14), salt=st.sampled_from(["", "x"])
    )
    def admit(self, prompt, salt):
        self.key += 1
        request = ask(prompt, key=self.key, salt=salt)
        self.allocator.adopt_prefix(request)
        self.begin(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def fork(self, data):
        leader = data.draw(st.sampled_from(self.requests))
        self.key += 1
        request = ask(leader.prompt, key=self.key, salt=leader.cache_salt, leader=leader)
        self.allocator.fork(leader, request)
        self.begin(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), token=st.integers(0, 1))
    def decode(self, data, token):
        request = data.draw(st.sampled_from(self.requests))
        request.output.append(token)
        if not self.write(request, len(request)):
            request.output.pop()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def release(self, data):
        request = data.draw(st.sampled_from(self.requests))
        self.requests.remove(request)
        self.allocator.release(request)

    @invariant()
    def counts_are_the_holders(self):
        pool = self.allocator.pool
        holders = Counter(block for request in self.requests for block in request.blocks)
        assert [pool.count(b) for b in range(10)] == [holders[b] for b in range(10)]
        assert pool.num_free == 10 - len(holders)

    @invariant()
    def every_request_reads_its_own_tokens(self):
        for request in self.requests:
            read = [self.content[request.blocks[p // SIZE]][p % SIZE] for p in range(len(request))]
            assert tuple(read) == request.tokens


TestScript = Script.TestCase
TestScript.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
