"""Real parts for every test that wants them: a broker, a store, a receiver, a small base model."""

pytest_plugins = [
    "tests.fixtures.rabbitmq",
    "tests.fixtures.s3",
    "tests.fixtures.receiver",
    "tests.fixtures.base_model",
    "tests.fixtures.site",
]
