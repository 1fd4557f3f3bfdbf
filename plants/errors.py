"""The errors a user can act on. Everything else is a bug and may show its traceback."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """The input is wrong. Prints as one line a fault: plant, file, field, what is wrong, what to do.

    Survives pickling across a Ray worker: everything after the message is optional.
    """

    exit_code = 2
    """What a command that it ends exits with."""

    def __init__(
        self,
        message: str,
        *,
        plant: str | None = None,
        file: str | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.detail = " ".join(str(message).split())
        self.plant, self.file, self.field, self.remedy = plant, file, field, remedy
        where = [f"{name} {value}" for name, value in (("plant", plant), ("file", file), ("field", field)) if value]
        text = ": ".join([*where, self.detail])
        super().__init__(f"{text}. {remedy}" if remedy else text)

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault, one line each."""
        return (str(self),)

    def at_plant(self, plant: str) -> tuple[str, ...]:
        """Every fault, one line each, and every line names the plant."""
        return tuple(fault if fault.startswith("plant ") else f"plant {plant}: {fault}" for fault in self.faults)


class ManyInputErrors(InputError):
    """Several faults found in one reading, all reported at once."""

    def __init__(self, faults: Sequence[str] | str) -> None:
        self._faults = tuple(faults.split("\n")) if isinstance(faults, str) else tuple(faults)
        super().__init__("; ".join(self._faults))
        self.args = ("\n".join(self._faults),)

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault, one line each."""
        return self._faults


class CheckFailed(RuntimeError):
    """A check said no: findings at level error, a gate that failed, a run that failed. Exit code 1."""


class SealError(InputError):
    """The sealed test refused to open: the budget is spent, or the caller may not."""


class Notice(UserWarning):
    """What a person should know although the work goes on: shown as one line, also where a worker meets it."""


class NoSpace(InputError):
    """A disk, or what may be used of it, is full: trying again helps once there is space."""
