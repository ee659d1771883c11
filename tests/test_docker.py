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

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
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


def git(*words: str) -> str:
    """What it says of the checkout; nothing where it is not one, or there is no git."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


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
    known = {line.partition("/")[0] for line in git("ls-files").splitlines()}
    assert not known or let_in == known - {".ci", ".gitignore"}


# service → what it has beside what all have
SERVICES: dict[str, dict[str, object]] = {
    "test": {"network_mode": "none"},
    "test-gpu": {},
    "bench": {
        "entrypoint": ["python", "-m", "bench"],
        "volumes": ["../bench/results:/gpuact/bench/results:z"],
    },
    "shell": {
        "command": ["bash"],
        "environment": {"GPUACT_REVISION": ""},
        "volumes": [f"../{d}:/gpuact/{d}:z" for d in ("gpuact", "kernels", "tests", "bench")],
    },
}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_given_what_it_needs_and_no_more(name: str) -> None:
    """Its user and cache are the caller's and of his CUDA; a GPU, or the run fails."""
    of_gpu = name in ("test-gpu", "bench")
    target = "cuda${GPUACT_CUDA:-13}" if of_gpu else "cpu"
    cache = "cache-cuda" if of_gpu else "cache-cpu"
    arguments = {"REVISION": "${GPUACT_REVISION:-unknown}"}
    device = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    expected = {
        "image": f"gpuact:{target}",
        "build": {
            "context": "..",
            "dockerfile": "docker/Dockerfile",
            "target": target,
            "args": arguments if of_gpu else arguments | {"TORCH_INDEX": "${TORCH_INDEX:-}"},
            "secrets": ["pip.conf"],
        },
        "user": "${GPUACT_UID:-1000}:${GPUACT_GID:-1000}",
        "init": True,
        **SERVICES[name],
    }
    if of_gpu:
        devices = {"reservations": {"devices": [device]}}
        expected |= {"shm_size": "1gb", "deploy": {"resources": devices}}
    expected["volumes"] = [f"{cache}:/cache", *expected.get("volumes", [])]  # type: ignore[misc]
    assert COMPOSE["services"][name] == expected
    assert COMPOSE["volumes"][cache] == {"name": f"gpuact-cache-{target}-${{GPUACT_UID:-1000}}"}
    assert set(COMPOSE["services"]) == set(SERVICES)


def test_compose_hands_on_what_the_dockerfile_takes() -> None:
    taken = {name for stage in stages() for rest in all_of(stage, "ARG") for name in rest.split()}
    handed = {name for each in COMPOSE["services"].values() for name in each["build"]["args"]}
    assert {name.partition("=")[0] for name in taken} == handed | {"BASE"}
    mounts = " ".join(all_of("packages-cpu", "RUN"))
    assert all(f"id={name}," in mounts for name in COMPOSE["secrets"])


SMOKE = "run --rm --volume RESULTS:/gpuact/bench/results:z {} python docker/smoke.py"
# what make is asked → what Compose is
ASKED = {
    ("docker-test", "ARGS=-k relu"): [
        "build test",
        SMOKE.format("test"),
        "run --rm --env ARGS test",
    ],
    ("docker-test-gpu", "ARGS=-k 'a b'"): [
        *("build test-gpu", SMOKE.format("test-gpu"), "run --rm --env ARGS test-gpu"),
    ],
    ("docker-bench", "ARGS=--suite rows"): ["run --build --rm bench --suite rows"],
}
# A `docker` that notes what it is asked, in whose name, and leaves FILE where results are mounted.
DOCKER = """#!/bin/sh
echo "$*|$GPUACT_UID:$GPUACT_GID $GPUACT_CUDA $GPUACT_REVISION|$ARGS" >> "$0.asked"
for word; do case $word in *:/gpuact/bench/results:z) touch "${word%%:*}/FILE";; esac; done
"""


def make(folder: Path, *words: str, file: str = "run.json") -> tuple[bool, list[list[str]]]:
    """Whether it was done, and what was asked of `docker`."""
    docker = folder / "docker"
    docker.write_text(DOCKER.replace("FILE", file))
    docker.chmod(0o755)
    names = ("ARGS", "MAKEFLAGS", "GPUACT_UID", "GPUACT_GID", "GPUACT_CUDA", "GPUACT_REVISION")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    command = ["make", "SET=cuda12", f"MOUNTED={folder / 'mounted'}", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    lines = (folder / "docker.asked").read_text().splitlines()
    return done.returncode == 0, [line.split("|") for line in lines]


@pytest.mark.parametrize("words", ASKED, ids=lambda words: words[0])
def test_make_tells_compose_who_and_what(words: tuple[str, str], tmp_path: Path) -> None:
    done, asked = make(tmp_path, *words)
    assert done
    calls = [re.sub(r"\S+(?=:/gpuact/bench/results)", "RESULTS", call) for call, _, _ in asked]
    assert calls == [f"compose --file docker/compose.yaml {call}" for call in ASKED[words]]
    changed = git("status", "--porcelain", "--", ".", ":!bench/results")
    revision = git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    expected = [f"{os.getuid()}:{os.getgid()} 12 {revision}", words[1].removeprefix("ARGS=")]
    assert [rest for _, *rest in asked] == [expected] * len(calls)
    assert not list(tmp_path.glob("mounted/*"))


def test_an_image_that_leaves_no_result_is_not_tested(tmp_path: Path) -> None:
    done, asked = make(tmp_path, "docker-test", file="run.part")
    assert not done
    assert len(asked) == 2  # it was built, and it was tried


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
