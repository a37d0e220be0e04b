"""What the documentation names is there: pages, headings, verbs, options, settings, files."""

import json
import re
import subprocess
import textwrap
from pathlib import PurePosixPath

import pytest
import typer

from tests.docs.pages import PAGES, TOP, blocks, prose, read, spans
from tests.generated import env_example
from worker.cli import app
from worker.contract.errors import ErrorCode
from worker.contract.events import CompleteBody, FailedBody, ProgressBody
from worker.contract.job import parse_message

#: Names in capitals that others have given: the system's, the broker's, CUDA's, the SDK's.
FOREIGN_NAMES = {
    *("OMP_NUM_THREADS", "ERL_MAX_PORTS", "RABBITMQ_MAX_NUMBER_OF_PROCESSES", "PR_SET_PDEATHSIG"),
    *("RABBITMQ_DEFAULT_USER", "RABBITMQ_DEFAULT_PASS", "HF_TOKEN"),
    *("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"),
    "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT",
}

#: Variables of `make` and of the examples, and words that stand for a value.
OUR_OTHER_NAMES = {
    *("BROKER_CTL", "BROKER_START"),
    *("JOB_ID", "WEBHOOK_SIGNING_SECRETS", "PUBLIC_URL"),
}

#: What an operator edits, and what is built from it, may have variables of its own.
FILES_WITH_VARIABLES = [
    *(TOP / name for name in ("Dockerfile", "docker-compose.yml", "Makefile")),
    *(path for path in TOP.glob("config/**/*") if path.is_file()),
]

SETTINGS = set(re.findall(r"^#?([A-Z0-9_]+)=", env_example(), re.M))

#: Where `lora-worker` is a command, and no namespace or image: first, or started by another one.
COMMAND = re.compile(
    r"(?:^(?:[A-Z_]+=\S+ )*|bin/|-- |&& |\| |opentelemetry-instrument )lora-worker ([a-z-].*)"
)

#: A placeholder's first letter, or the first of what needs a shell.
ARGUMENTS_END = re.compile(r"[|&;<>…]")


def test_the_pages_are_found():
    assert {"README.md", "CHANGELOG.md", "docs/operations.md", "examples/README.md"} <= set(PAGES)


# --- links


def anchors(page):
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).replace("`", "") for h in headings]
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (TOP / page).parent / path if path else TOP / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            inside = file.resolve().relative_to(TOP).as_posix()
            assert anchor in anchors(inside), f"{page}: {target}; there are {anchors(inside)}"


def test_every_page_is_linked_from_another():
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s#]+)", prose(page)):
            file = ((TOP / page).parent / target).resolve()
            if file.is_relative_to(TOP):
                linked.add(file.relative_to(TOP).as_posix())
    assert set(PAGES) - linked - {"README.md"} == set()


# --- words in code


def commands_named(page):
    """Every `lora-worker …` of a page: in its text, and line by line in its blocks."""
    said = spans(page)
    for block in blocks(page):
        said += block.text.replace("\\\n", " ").splitlines()
    found = [COMMAND.search(each) for each in said]
    return [match[1].partition("  #")[0] for match in found if match]


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_and_option_exists(page):
    for words in commands_named(page):
        command, path = typer.main.get_command(app), ["lora-worker"]
        rest = ARGUMENTS_END.split(words)[0].replace("[", " ").replace("]", " ").split()
        while rest and hasattr(command, "commands"):
            verb = rest.pop(0)
            assert verb in command.commands, f"{page}: {' '.join(path)} {verb}"
            command = command.commands[verb]
            path.append(verb)
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        named = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert named <= known, f"{page}: {' '.join(path)} has no {named - known}"


def test_every_verb_is_in_the_readme():
    def verbs(command, path=""):
        for name, inner in command.commands.items():
            if hasattr(inner, "commands"):
                yield from verbs(inner, f"{path}{name} ")
            else:
                yield f"{path}{name}"

    row = re.findall(r"^\| (`lora-worker .*?) \|", read("README.md"), re.M)
    told = set()
    for cell in row:
        first = ""
        for span in re.findall(r"`([^`]+)`", cell):
            words = span.removeprefix("lora-worker ").split()
            if span.startswith("lora-worker "):
                first = words[0]
                told |= {words[0], " ".join(words[:2])}
            else:
                told |= {words[0], f"{first} {words[0]}"}
    assert set(verbs(typer.main.get_command(app))) <= told


@pytest.mark.parametrize("page", PAGES)
def test_every_target_of_make_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", read_top("Makefile"), re.M))
    said = spans(page)
    for block in blocks(page, "sh"):
        said += block.text.splitlines()
    named = [word for text in said for word in re.findall(r"^(?:[A-Z]+=\S+ )*make ([a-z-]+)", text)]
    assert set(named) <= targets, page


def test_every_target_with_an_explanation_is_named_on_some_page():
    explained = set(re.findall(r"^([a-z-]+):.*##", read_top("Makefile"), re.M))
    named = {w for page in PAGES for w in re.findall(r"make ([a-z-]+)", read(page))}
    assert explained - named <= {"help", "clean", "setup", "lint", "types"}


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_exists(page):
    """A name in capitals with an underscore is a setting, an error code, or stands in some file."""
    files = "\n".join(path.read_text() for path in FILES_WITH_VARIABLES)
    for text in (*spans(page), *(block.text for block in blocks(page))):
        for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b(?!_|…)", text):
            known = name in SETTINGS | FOREIGN_NAMES | OUR_OTHER_NAMES | set(ErrorCode)
            known |= bool(re.search(rf"\b{name}\b", files)) or name.startswith("AWS_")
            assert known, f"{page}: {name}"


def test_every_name_that_is_excused_is_still_used():
    everything = "\n".join(map(read, PAGES))
    assert {n for n in FOREIGN_NAMES | OUR_OTHER_NAMES if n not in everything} <= {
        "PR_SET_PDEATHSIG"
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_ours_that_is_named_exists(page):
    answer = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=TOP, capture_output=True, text=True
    )
    files = {PurePosixPath(line) for line in answer.stdout.splitlines()}
    for span in spans(page):
        for name in re.findall(r"(?:^|[ ,])((?:[\w.-]+/)*[\w.-]+\.(?:py|toml|yml))\b", span):
            if "*" in span or "NAME" in name:
                continue
            parts = PurePosixPath(name).parts
            assert any(file.parts[-len(parts) :] == parts for file in files), f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_json_example_is_what_it_looks_like(page):
    for block in blocks(page, "json"):
        value = json.loads(block.text)
        if "progress" in value:
            ProgressBody.model_validate(value)
        elif "model_url" in value:
            CompleteBody.model_validate(value)
        elif "error_code" in value:
            FailedBody.model_validate(value)
        else:
            parse_message(block.text.encode())


@pytest.mark.parametrize("page", PAGES)
def test_every_python_example_is_python(page):
    for block in blocks(page, "python"):
        text = block.text
        if text.startswith("# examples/"):  # a part of a function, and perhaps of a statement
            text = text.rstrip() + (")" if text.rstrip().endswith("(") else "")
            text = "def part():\n" + textwrap.indent(textwrap.dedent(text.partition("\n")[2]), " ")
        compile(text, str(block), "exec")


def test_every_block_says_its_language():
    unsaid = [str(b) for page in PAGES for b in blocks(page) if not b.language]
    assert unsaid == []


# --- pictures


def test_pictures_are_small_enough_for_a_page_and_are_shown():
    from PIL import Image

    shown = "\n".join(map(read, PAGES))
    pictures = sorted((TOP / "docs/pictures").glob("*"))
    assert [picture.name for picture in pictures] == ["report.png", "status.png"]
    for picture in pictures:
        assert picture.stat().st_size < 150_000
        assert f"docs/pictures/{picture.name}" in shown
        with Image.open(picture) as opened:
            assert opened.format == "PNG"
            assert opened.width >= 800


def read_top(name):
    return (TOP / name).read_text()
