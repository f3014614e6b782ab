"""Rank 0's runner: every batch goes to all ranks, and rank 0's own tokens are the answer."""

from engine.batch import Batch, StepOutput
from engine.errors import EngineDeadError, EngineError
from engine.platform.runner import Pending, Runner
from engine.ranks.group import RankGroup
from engine.ranks.messages import Load, Loaded, Reset

#: How long the others may take to load after rank 0 has, in seconds: it had the same to do.
LOAD_S = 1800.0


class GroupRunner(Runner):
    """`own` computes rank 0's share. After an error in a step, no other step can be computed: ranks
    may have stopped at different places. Every call then raises the EngineDeadError that says why.
    """

    def __init__(self, own: Runner, group: RankGroup) -> None:
        self._own = own
        self._group = group
        self._died: EngineError | None = None

    @property
    def num_compiled(self) -> int:
        """Rank 0's; the others have the same programs."""
        return self._own.num_compiled

    def load(self) -> int:
        """The least number of blocks that any rank has room for.

        Raises:
            EngineError: what a rank raised.
        """
        self._group.send(Load())
        try:
            num_blocks = self._own.load()
        except EngineError:
            raise
        except Exception as error:
            raise self._group.explain(error) from error
        others = self._group.await_each(Loaded, "load the model", LOAD_S)
        return min(num_blocks, *(one.num_blocks for one in others))

    def execute(self, batch: Batch) -> Pending:
        self._check()
        try:
            self._group.send(batch)
            pending = self._own.execute(batch)
        except BaseException as error:
            raise self._die(error) from error
        return Pending(batch, lambda: self._result(pending))

    def reset(self) -> None:
        """
        Raises:
            EngineDeadError: a step failed.
        """
        self._check()
        self._group.send(Reset())
        self._own.reset()

    def report(self) -> str:
        return f"rank 0 of {self._group.size}; the others have as much\n{self._own.report()}"

    def close(self) -> None:
        self._group.close()
        self._own.close()

    def _result(self, pending: Pending) -> StepOutput:
        self._check()
        try:
            return pending.result()
        except BaseException as error:
            raise self._die(error) from error

    def _check(self) -> None:
        if self._died is None and self._group.failed:
            self._die(EngineDeadError("another rank failed"))
        if self._died is not None:
            raise self._died

    def _die(self, error: BaseException) -> BaseException:
        """Remember why; what the caller is to raise."""
        if not isinstance(error, Exception):  # an interruption: the batch was computed in part
            self._died = EngineDeadError("a step of several ranks was interrupted")
            return error
        cause = self._group.explain(error)
        if not isinstance(cause, EngineDeadError):
            cause = EngineDeadError(f"{type(cause).__name__}: {cause}")
        self._died = cause
        return cause
