"""Who may begin at a trainer beside whom, row by row."""

import pytest

from worker.jobs.sharing import AtTrainer, Trainee

X1, X2, X3 = (Trainee(f"x{number}", "X") for number in (1, 2, 3))
Y = Trainee("y", "Y")
LONER = Trainee("loner", None)


@pytest.mark.parametrize(
    ("here", "job", "may_begin"),
    [
        # a trainer of one job
        (AtTrainer((), slots=1), X1, True),
        (AtTrainer((X1,), slots=1), X2, False),
        # nobody is there: any job may begin
        (AtTrainer((), slots=3), X1, True),
        (AtTrainer((), slots=3), LONER, True),
        (AtTrainer((), slots=3, takes_new=False), X1, True),
        # jobs that can share
        (AtTrainer((X1,), slots=3), X2, True),
        (AtTrainer((X1, X2), slots=3), X3, True),
        (AtTrainer((X1, X2), slots=2), X3, False),
        # jobs that cannot
        (AtTrainer((X1,), slots=3), Y, False),
        (AtTrainer((X1,), slots=3), LONER, False),
        (AtTrainer((LONER,), slots=3), X1, False),
        (AtTrainer((LONER,), slots=3), Trainee("another", None), False),
        # a trainer that is to be replaced
        (AtTrainer((X1,), slots=3, takes_new=False), X2, False),
        # the same job, whose earlier claim has not ended here
        (AtTrainer((X1,), slots=3), X1, False),
    ],
)
def test_who_may_begin(here, job, may_begin):
    assert here.may_begin(job) is may_begin


@pytest.mark.parametrize(
    ("here", "has_room", "joinable"),
    [
        (AtTrainer((), slots=2), True, True),
        (AtTrainer((X1,), slots=2), True, True),
        (AtTrainer((X1, X2), slots=2), False, True),
        (AtTrainer((X1,), slots=1), False, True),
        (AtTrainer((LONER,), slots=2), False, False),
        (AtTrainer((X1,), slots=2, takes_new=False), False, False),
    ],
)
def test_where_some_job_could_begin(here, has_room, joinable):
    assert (here.has_room, here.joinable) == (has_room, joinable)
