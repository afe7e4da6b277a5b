"""The five kinds of failure and the exit code of each.

A message says what went wrong, where, what was expected, what was found and what to do next.
A pipeline reads only the exit code: 69 and 75 may be tried again, the others need a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class SssflowError(Exception):
    """Base of every failure that a user is meant to read.

    Args:
        what: One sentence: what is wrong.
        where: File, case, key or address; empty if it does not apply.
        expected: What would have been right.
        found: What there is instead.
        action: What to do next.
    """

    exit_code: ClassVar[int] = 70
    kind: ClassVar[str] = "internal error"

    def __init__(
        self,
        what: str,
        *,
        where: object = "",
        expected: object = "",
        found: object = "",
        action: str = "",
    ) -> None:
        self.what = what
        self.where = str(where)
        self.expected = str(expected)
        self.found = str(found)
        self.action = action
        super().__init__(self.describe())

    def describe(self) -> str:
        """The whole message, one fact per line, empty facts left out."""
        facts = (
            ("where", self.where),
            ("expected", self.expected),
            ("found", self.found),
            ("next", self.action),
        )
        lines = [self.what, *(f"  {name}: {text}" for name, text in facts if text)]
        return "\n".join(lines)


class UsageError(SssflowError):
    """The command line or a configuration is wrong (exit 64)."""

    exit_code = 64
    kind = "usage error"


class DataError(SssflowError):
    """A scan, mask, manifest, checkpoint or bundle is not what it must be (exit 65)."""

    exit_code = 65
    kind = "data error"


class DataProblems(DataError):  # noqa: N818 - a bundle of errors
    """Several data problems found in one pass, none of them hidden by another (exit 65)."""

    def __init__(self, what: str, problems: Sequence[DataError], *, action: str = "") -> None:
        if not problems:
            raise ValueError("DataProblems needs at least one problem")
        self.problems = tuple(problems)
        super().__init__(what, found=f"{len(self.problems)} problem(s)", action=action)

    def describe(self) -> str:
        """The headline, then every problem with its own facts."""
        listed = (f"[{i}] {p.describe()}" for i, p in enumerate(self.problems, start=1))
        return "\n".join([super().describe(), *listed])


class UnavailableError(SssflowError):
    """A disk, network or service cannot be used now; trying again may help (exit 69)."""

    exit_code = 69
    kind = "service unavailable"


class InternalError(SssflowError):
    """A promise of this program is broken; nothing a user did wrong (exit 70)."""

    exit_code = 70
    kind = "internal error"


class InterruptedRun(SssflowError):  # noqa: N818 - it is an outcome, not a fault
    """The run was stopped and can be resumed by the same command (exit 75)."""

    exit_code = 75
    kind = "interrupted, resumable"


def kind_of(exit_code: int) -> type[SssflowError]:
    """The kind of failure that a process ended with; InternalError for any other code."""
    kinds = (UsageError, DataError, UnavailableError, InterruptedRun)
    return next((kind for kind in kinds if kind.exit_code == exit_code), InternalError)
