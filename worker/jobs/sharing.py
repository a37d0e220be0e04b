"""Who is at a trainer, and may another job begin beside them? Pure: a table over what is known."""

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Trainee:
    """A job that is to be trained.

    Attributes:
        company: jobs of which this is equal can share a pass; None for one that shares with nobody.
    """

    job_id: str
    company: Hashable | None = None


@dataclass(frozen=True)
class AtTrainer:
    """Those who have their turn at one trainer.

    Attributes:
        slots: how many it trains at a time.
        takes_new: whether it takes another one beside them; one that is to be replaced does not.
    """

    jobs: tuple[Trainee, ...]
    slots: int = 1
    takes_new: bool = True

    @property
    def has_room(self) -> bool:
        """Whether some job could begin now."""
        return not self.jobs or (self.joinable and len(self.jobs) < self.slots)

    @property
    def joinable(self) -> bool:
        """Whether some job could begin beside those that are here, were there a slot for it."""
        return self.takes_new and all(job.company is not None for job in self.jobs)

    def may_begin(self, job: Trainee) -> bool:
        """Whether this one may begin now."""
        if not self.jobs:
            return True
        # The same job may be here still: its worker lost it, and got its message again.
        known = any(other.job_id == job.job_id for other in self.jobs)
        alike = all(other.company == job.company for other in self.jobs)
        return self.has_room and alike and not known
