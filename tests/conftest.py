"""Real parts for every test that wants them: a broker, a store, a receiver, a small base model."""

import os

# Before anything imports torch: the models of the tests are so small that a second thread only
# waits, and on a busy machine for long. Trainers that the tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = [
    "tests.fixtures.rabbitmq",
    "tests.fixtures.s3",
    "tests.fixtures.receiver",
    "tests.fixtures.base_model",
    "tests.fixtures.site",
    "tests.fixtures.browser",
    "tests.fixtures.finished",
]
