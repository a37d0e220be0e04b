"""A trainer is started with what it needs, and without credentials."""

import sys

from worker.jobs.devices import Share
from worker.jobs.from_settings import trainer_slot
from worker.jobs.trainer_start import pack_arguments, trainer_command, trainer_environment
from worker.settings import load_settings


def command_of(**how):
    slot = trainer_slot(load_settings(pack_wait_seconds=1.5), Share(None), 1, None, **how)
    return slot._command


def test_a_trainer_of_one_job_at_a_time_is_asked_for_nothing_more():
    assert command_of() == (sys.executable, "-m", "worker.training") == trainer_command(1)
    assert pack_arguments(1, 30) == ()


def test_a_trainer_of_several_jobs_is_told_how_many_and_how_long_one_waits_for_company():
    added = ("--slots", "8", "--pack-wait-seconds", "1.5")
    assert command_of(at_a_time=8) == (*trainer_command(1), *added)


def test_a_trainer_sees_no_credentials():
    seen = trainer_environment(
        {
            "PATH": "/bin",
            "CUDA_HOME": "/cuda",
            "INTERNAL_API_TOKEN": "t",
            "AWS_SECRET_ACCESS_KEY": "s",
            "RABBITMQ_URL": "amqp://u:p@h/",
            "HF_TOKEN": "h",
            "HF_HOME": "/cache",
            "WEBHOOK_SIGNING_SECRET": "w",
        },
        share=Share("1"),
        allow_hub=False,
    )
    assert {name for name in seen if not name.startswith(("CUBLAS", "PYTHON"))} == {
        "PATH",
        "CUDA_HOME",
        "HF_HOME",
        "CUDA_VISIBLE_DEVICES",
        "HF_HUB_OFFLINE",
    }
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"


def test_trainers_of_one_gpu_may_share_it_through_cudas_own_service():
    mps = {"CUDA_MPS_PIPE_DIRECTORY": "/mps", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}
    seen = trainer_environment(mps, share=Share("0", trainers=2), allow_hub=False)
    assert mps.items() <= seen.items()


def test_trainers_of_a_machine_without_a_gpu_divide_its_cores(mocker):
    mocker.patch("os.sched_getaffinity", return_value=set(range(8)))

    def threads(share, **environment):
        return trainer_environment(environment, share=share, allow_hub=False).get("OMP_NUM_THREADS")

    assert threads(Share(None)) is None
    assert threads(Share(None, trainers=3)) == "2"
    assert threads(Share(None, processes=2)) == "4"
    assert threads(Share(None, trainers=16)) == "1"
    assert threads(Share(None, trainers=2), OMP_NUM_THREADS="3") == "3"
    assert threads(Share("0", trainers=2)) is None
