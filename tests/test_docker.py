"""The images: made of what Makefile and pyproject.toml say, and red where a GPU is missing.

`make lint-docker` reads the files as Docker does; docker/smoke.py is what an image itself must do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gpuact

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
TARGETS = ("cpu", "cuda12", "cuda13")


def stages() -> dict[str, list[tuple[str, str]]]:
    """By name, each instruction and its words, without comments and line ends."""
    text = re.sub(r"^ *#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", "")
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        rest = " ".join(rest.split())
        if word == "FROM":
            rest, _, name = rest.partition(" AS ")
        found.setdefault(name, []).append((word, rest))
    return found


def all_of(stage: str, word: str) -> list[str]:
    return [rest for each, rest in stages()[stage] if each == word]


@pytest.mark.parametrize("target", TARGETS)
def test_packages_are_a_layer_that_no_source_changes(target: str) -> None:
    stage = f"packages-{target}"
    assert all_of(stage, "ENV") == [f"SET={target}"]
    copied = ["Makefile pyproject.toml ./", f"constraints/{target}.txt constraints/"]
    assert all_of(stage, "COPY") == copied
    of_cpu = [(word, rest.replace("cpu", target)) for word, rest in stages()["packages-cpu"]]
    assert stages()[stage] == of_cpu


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_run_by_a_user_who_owns_nothing(target: str) -> None:
    assert all_of(target, "FROM") == [f"packages-{target}"]
    assert all_of(target, "COPY") == ["--from=sources /gpuact ."]
    assert all_of(target, "USER") == ["1000:1000"]  # a number: Kubernetes can see that it is not 0
    needs_gpu = target != "cpu"
    assert all_of(target, "CMD") == ['["make", "test-gpu"]' if needs_gpu else '["make", "test"]']
    assert ("GPUACT_REQUIRE_GPU=1" in " ".join(all_of(target, "ENV"))) == needs_gpu
    assert all_of("cuda12", "ENV") == all_of("cuda13", "ENV")


def test_every_builder_can_read_it() -> None:
    """What Docker's BuildKit, Podman and Buildah all know."""
    instructions = [pair for stage in stages().values() for pair in stage]
    assert not [rest for word, rest in instructions if word in ("RUN", "COPY") and "<<" in rest]
    assert not [rest for word, rest in instructions if "--link" in rest or "--exclude" in rest]


def test_the_label_s_version_is_the_package_s() -> None:
    (labels,) = all_of("base", "LABEL")
    assert f'org.opencontainers.image.version="{gpuact.__version__}"' in labels


def test_the_images_have_what_git_has() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert lines.index("*") < lines.index("!gpuact")
    assert all((ROOT / name).exists() for name in let_in)
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return
    command = ["git", "ls-files"]
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    known = {line.partition("/")[0] for line in files.splitlines()}
    assert let_in == known - {".ci", ".gitignore"}


def test_compose_hands_on_what_the_dockerfile_takes() -> None:
    handed = set(re.findall(r"^ +([A-Z_]+):$", COMPOSE, re.MULTILINE))
    taken = {name for stage in stages() for rest in all_of(stage, "ARG") for name in rest.split()}
    assert handed == {name.partition("=")[0] for name in taken}


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        (
            ["docker-test", "ARGS=-k relu"],
            [
                "build test",
                "run --rm --volume RESULTS:/gpuact/bench/results test python docker/smoke.py",
                "run --rm --env ARGS test",
            ],
        ),
        (["docker-bench", "ARGS=--suite rows"], ["run --build --rm bench --suite rows"]),
    ],
)
def test_make_hands_compose_who_and_what(
    command: list[str], calls: list[str], tmp_path: Path
) -> None:
    """With a `docker` that notes what it is asked, and writes a result through the mount."""
    noted = tmp_path / "noted"
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$*|$GPUACT_UID:$GPUACT_GID $CUDA $REVISION $ARGS" >> {noted}\n'
        "for word; do case $word in\n"
        '*:/gpuact/bench/results) touch "${word%%:*}/run.json";; esac; done\n'
    )
    docker.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "MAKEFLAGS": ""}
    for name in ("ARGS", "CUDA", "REVISION", "GPUACT_UID", "GPUACT_GID"):
        environment.pop(name, None)
    command = ["make", "SET=cuda12", *command]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)

    asked, told = zip(*(line.split("|") for line in noted.read_text().splitlines()), strict=True)
    asked = [re.sub(r"\S+(?=:/gpuact/bench/results)", "RESULTS", line) for line in asked]
    assert asked == [f"compose --file docker/compose.yaml {call}" for call in calls]
    who, cuda, *rest = told[-1].split(" ", 2)
    assert (who, cuda) == (f"{os.getuid()}:{os.getgid()}", "12")
    revision = r"([0-9a-f]{40}(-dirty)?)" if (ROOT / ".git").exists() else ""
    assert re.fullmatch(f"{revision} {command[-1].removeprefix('ARGS=')}", rest[0])


def test_without_a_gpu_tests_fail_at_once_and_say_why() -> None:
    command = [sys.executable, "-m", "pytest", "-n", "2", "-m", "gpu", "tests/test_import.py"]
    hidden = {"GPUACT_REQUIRE_GPU": "1", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | hidden, capture_output=True, text=True
    )
    assert done.returncode == 1
    (sentence,) = re.findall("^Exit: (.*)$", done.stdout + done.stderr, re.MULTILINE)
    assert re.match("GPUACT_REQUIRE_GPU=1 came, and no GPU answers: cupy: .+; triton: .+", sentence)
    assert "passed" not in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("words", [[], ["--suite", "rows"]])
def test_without_a_gpu_the_benchmark_measures_nothing_else(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    from bench import __main__ as bench
    from bench import suites

    monkeypatch.setenv("GPUACT_REQUIRE_GPU", "1")
    monkeypatch.setattr(suites, "gpu_answers", lambda: False)
    monkeypatch.setattr(suites, "without_gpu", lambda: "cupy: no driver; triton: no torch")
    assert bench.main([*words, "--no-out"]) == 2
    told = "GPUACT_REQUIRE_GPU=1 came, and no GPU answers: cupy: no driver; triton: no torch"
    assert capsys.readouterr().err == f"bench: {told}\n"
    assert bench.main(["--suite", "cpu", "--only", "nothing of it", "--no-out"]) == 2
    assert "nothing of it" in capsys.readouterr().err  # who asks for the CPU gets it
