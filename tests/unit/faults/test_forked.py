"""The campaign's own processes: how a worker ended is not lost on whoever asks second."""

import threading

from tests.faults.forked import ForkedProcess


def test_all_who_ask_at_once_how_a_worker_ended_hear_the_same(tmp_path):
    # Without settings it ends at once; its lane waits, and every other lane that starts a worker
    # looks at it too.
    log = tmp_path / "worker.log"
    log.touch()
    processes = [ForkedProcess({}, log) for _ in range(10)]
    heard = set()

    def ask():
        for process in processes:
            while (status := process.poll()) is None:
                pass
            heard.add(status)

    crowd = [threading.Thread(target=ask) for _ in range(8)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    assert heard == {processes[0].wait(60)}
    assert heard == {1}
