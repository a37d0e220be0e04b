"""How each command of the documentation is tested: run, run elsewhere, or not, and then why.

A command that no row below knows fails the tests; so does a row that no command needs.
"""

import re
from dataclasses import dataclass, field

from tests.docs.pages import PAGES, Block, blocks


@dataclass(frozen=True)
class Run:
    """Run as it stands, with a broker, a store, a receiver and a worker behind the settings.

    Attributes:
        says: what it must print.
        stands_in: words of the command that are replaced, and by what: `{port}` is a free port.
        serves: it goes on until it is stopped; it must answer at `{port}` first.
        trains: it needs a base model that can be trained.
    """

    says: str = ""
    stands_in: dict[str, str] = field(default_factory=dict)
    serves: bool = False
    trains: bool = False


@dataclass(frozen=True)
class RunBy:
    """Another test runs it: `words` stand in `file`."""

    file: str
    words: str


@dataclass(frozen=True)
class NotRun:
    """What it would need, and what is tested instead."""

    reason: str


Treatment = Run | RunBy | NotRun

#: The first row whose pattern is the whole command decides.
TREATMENTS: dict[str, Treatment] = {
    r"make test": RunBy(".ci/run", "make test"),
    r"([A-Z_]+=\S+ )*docker .*": NotRun(
        "needs a Docker engine and images from a registry; `make compose-check` runs the compose "
        "file, and tests/unit/deploy/test_deployment_page.py holds what the commands name"
    ),
    r"kubectl .*": NotRun(
        "needs a cluster; that the folders render and are valid is held by "
        "tests/unit/deploy/test_manifests.py"
    ),
    r"\.venv/bin/lora-worker train .*": Run(
        says="trained 3 steps", stands_in={"epochs=100": "epochs=3"}, trains=True
    ),
    r"\.venv/bin/lora-worker models pull .*": RunBy(
        "tests/integration/hub/test_models_pull.py", '"models", "pull"'
    ),
    r"pip install .*": NotRun(
        "asks a package index; that the named packages are enough for a backend is held by "
        "tests/unit/client/test_weight.py"
    ),
    r"lora-worker validate job\.json": Run(says="valid: job "),
    r"lora-worker submit job\.json --wait": Run(says='"model_url":"s3://'),
    r"make demo|lora-worker demo": RunBy("tests/e2e/test_demo.py", '"demo"'),
    r"python -m worker\.demo\.receiver --port 8000": Run(
        says="receiver on http://", stands_in={"8000": "{port}"}, serves=True
    ),
    r"lora-worker reproduce manifest\.json .*": RunBy(
        "tests/e2e/test_real_training.py", '"reproduce"'
    ),
}


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    block: Block
    text: str

    def __str__(self) -> str:
        return f"{self.block}: {self.text}"

    @property
    def treatment(self) -> Treatment | None:
        """What is done with it; None if no row knows it."""
        return next((t for p, t in TREATMENTS.items() if re.fullmatch(p, self.text)), None)


def commands() -> list[Command]:
    """Every line of every `sh` block, continued lines joined, comments left out."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if text := " ".join(re.sub(r"(^|\s)#.*", "", line).split()):
                    found.append(Command(block, text))
    return found
