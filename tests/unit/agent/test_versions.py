"""The image's versions, found without running anything of the image."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from pretune.agent.engine.versions import read_versions, site_folders
from pretune.engines.vllm.engine import VLLM

from tests.unit.agent.image import install_package, install_python, write_script


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """usr: a system Python with vLLM 0.20.0; opt: the engine's own, with vLLM 0.33.0."""
    install_python(tmp_path / "usr", "3.10", vllm="0.20.0", flashinfer="0.5.0")
    own = install_python(tmp_path / "opt", vllm="0.33.0", flashinfer="0.7.2.post1")
    write_script(tmp_path / "opt/bin/vllm", f"#!{own}\n")
    write_script(tmp_path / "entry/env", "#!/usr/bin/env -S python3 -u\n")
    long = f"#!/bin/sh\n'''exec' \"{own}\" \"$0\" \"$@\"\n' '''\nimport sys\n"
    write_script(tmp_path / "entry/long", long)
    write_script(
        tmp_path / "entry/hands-on",
        f'#!/bin/bash\nset -e\n# exec nothing\nexec {tmp_path}/opt/bin/vllm serve "$@"\n',
    )
    write_script(tmp_path / "entry/opaque", "#!/bin/bash\nsource /env\nrun-it\n")
    write_script(tmp_path / "entry/binary", "\x7fELF")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "path", "version"),
    [
        (["{}/opt/bin/vllm", "serve", "m"], "usr", "0.33.0"),
        (["vllm", "serve", "m"], "usr:opt", "0.33.0"),
        (["vllm", "serve", "m"], "usr", "0.20.0"),
        (["python3", "-m", "vllm.entrypoints.openai.api_server"], "usr:opt", "0.20.0"),
        (["python3", "-m", "vllm.entrypoints.openai.api_server"], "opt:usr", "0.33.0"),
        (["{}/opt/bin/python3", "-m", "vllm.entrypoints"], "usr", "0.33.0"),
        (["{}/opt/bin/python3.12", "x.py"], "usr", "0.33.0"),
        (["/bin/sh", "-c", "exec {}/opt/bin/vllm serve m --port 1"], "usr", "0.33.0"),
        (
            ["/bin/bash", "-lc", "source /env; set -e\nnumactl -N 0 {}/opt/bin/vllm serve m"],
            "usr",
            "0.33.0",
        ),
        (["tini", "-g", "--", "{}/opt/bin/vllm", "serve"], "usr", "0.33.0"),
        (["{}/entry/long", "serve"], "usr", "0.33.0"),
        (["{}/entry/env"], "opt", "0.33.0"),
        (["{}/entry/hands-on"], "usr", "0.33.0"),
        (["{}/entry/opaque"], "usr:opt", "0.33.0"),
        (["{}/entry/binary"], "usr", "0.20.0"),
        ([], "opt:usr", "0.33.0"),
        ([], "usr", "0.20.0"),
        (["--model", "m"], "usr:opt", "0.33.0"),
        (["{}/absent/vllm"], "", ""),
        # On a volume of the engine, perhaps: the image's own version is another one's.
        (["{}/absent/vllm", "serve"], "usr", ""),
        (["{}/absent/start.sh"], "usr", ""),
        (["{}/absent/bin/python3", "-m", "vllm"], "usr", ""),
        (["tini", "--", "{}/absent/vllm", "serve"], "usr", ""),
        (["/bin/sh", "-c", "exec {}/absent/vllm serve m"], "usr", ""),
        (["/bin/sh", "-c", ". {}/absent/bin/activate && vllm serve m"], "usr", ""),
        (["/bin/sh", "-c", ". {}/opt/bin/activate && vllm serve m"], "usr", "0.33.0"),
        (["/bin/sh", "-c", "PATH={}/absent/bin:$PATH vllm serve m"], "usr", ""),
        (["/bin/sh", "-c", "export PATH={}/opt/bin:$PATH; vllm serve m"], "usr", "0.33.0"),
        (["vllm", "serve", "--model", "{}/absent/vllm"], "usr", "0.20.0"),
        (["--model", "{}/absent/vllm"], "usr", "0.20.0"),
        (["vllm", "serve", "{}/absent/vllm", "-tp", "8"], "usr", "0.20.0"),
        (["tini", "--", "vllm", "serve", "{}/absent/vllm"], "usr", "0.20.0"),
    ],
)
def test_the_engines_own_interpreter_decides(
    image: Path, command: list[str], path: str, version: str
) -> None:
    found = read_versions(
        VLLM,
        [word.format(image) for word in command],
        os.pathsep.join(f"{image}/{prefix}/bin" for prefix in path.split(":") if prefix),
    )
    assert found.vllm == version
    assert found.flashinfer == {"0.33.0": "0.7.2.post1", "0.20.0": "0.5.0", "": ""}[version]


@pytest.mark.parametrize(
    ("args", "path", "version"),
    [
        (["Qwen/Qwen3-8B", "--tensor-parallel-size", "8"], "opt:usr", "0.33.0"),
        (["Qwen/Qwen3-8B"], "usr", "0.20.0"),
        (["{}/absent/llama", "--port", "80"], "usr:opt", "0.33.0"),
        (["{}/absent/vllm", "--port", "80"], "usr", "0.20.0"),
        (["{}/absent/vllm"], "usr", "0.20.0"),
        (["serve", "{}/absent/vllm"], "usr", "0.20.0"),
        (["serve", "{}/absent/vllm", "-tp", "8"], "usr", "0.20.0"),
        (["env", "--port", "80"], "entry:usr:opt", "0.33.0"),  # a model; no program of that name
        ([], "usr", "0.20.0"),
        # An entrypoint that runs what it is given.
        (["vllm", "serve", "m"], "usr:opt", "0.33.0"),
        (["vllm", "serve", "{}/absent/vllm"], "usr:opt", "0.33.0"),
        (["{}/opt/bin/vllm", "serve", "m"], "usr", "0.33.0"),
        (["{}/absent/vllm", "serve", "m"], "usr", ""),
        (["{}/absent/bin/python3", "-m", "vllm"], "usr", ""),
        (["sh", "-c", "exec {}/absent/vllm serve m"], "usr", ""),
    ],
)
def test_of_args_alone_only_an_interpreter_or_engine_is_a_program(
    image: Path, args: list[str], path: str, version: str
) -> None:
    folders = os.pathsep.join(f"{image}/{prefix}" for prefix in _bin(path))
    words = [word.format(image) for word in args]
    assert read_versions(VLLM, words, folders, args_only=True).vllm == version


def _bin(path: str) -> list[str]:
    return [prefix if prefix == "entry" else f"{prefix}/bin" for prefix in path.split(":")]


def test_a_virtual_environments_links_do_not_lead_out_of_it(tmp_path: Path) -> None:
    base = install_python(tmp_path / "usr", vllm="0.20.0")
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python").symlink_to(base)
    (environment / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n"
    )
    site = environment / "lib/python3.12/site-packages"
    install_package(site, "vllm", "0.33.0")
    linked = tmp_path / "elsewhere/python3"
    linked.parent.mkdir()
    linked.symlink_to(environment / "bin/python")
    for program in (environment / "bin/python", linked):
        assert read_versions(VLLM, [str(program), "-m", "vllm"], "").vllm == "0.33.0"
        assert site_folders(str(program)) == [str(site)]
    (environment / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = true\n"
    )
    assert len(site_folders(str(linked))) == 2


def test_debians_folders_are_known(tmp_path: Path) -> None:
    own = install_python(tmp_path / "usr", "3.12")
    install_package(tmp_path / "usr/local/lib/python3.12/dist-packages", "vllm", "0.33.0")
    install_package(tmp_path / "usr/lib/python3/dist-packages", "flashinfer-python", "0.7.2")
    install_package(tmp_path / "usr/local/lib/python3.10/dist-packages", "vllm", "0.20.0")
    found = read_versions(VLLM, [str(own)], "")
    assert (found.vllm, found.flashinfer) == ("0.33.0", "0.7.2")


def test_packages_of_like_names_are_not_taken_for_them(tmp_path: Path) -> None:
    own = install_python(tmp_path / "usr")
    site = tmp_path / "usr/lib/python3.12/site-packages"
    for name in ("vllm_flash_attn", "vllm-router", "flashinfer_cubin", "flashinfer"):
        install_package(site, name, "9.9.9")
    assert read_versions(VLLM, [str(own)], "") == read_versions(VLLM, [], "")
    install_package(site, "vllm", "0.33.0+cu130")
    install_package(site, "FlashInfer.Python", "0.7.2")
    found = read_versions(VLLM, [str(own)], "")
    assert (found.vllm, found.flashinfer) == ("0.33.0+cu130", "0.7.2")


def test_pythonpath_comes_first(tmp_path: Path) -> None:
    own = install_python(tmp_path / "usr", vllm="0.20.0")
    install_package(tmp_path / "mounted", "vllm", "0.33.0")
    assert (
        read_versions(VLLM, [str(own)], "", f"{tmp_path}/absent:{tmp_path}/mounted").vllm
        == "0.33.0"
    )


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(tmp_path / "python")
    (tmp_path / "python").symlink_to(tmp_path / "python3")
    assert read_versions(VLLM, [str(tmp_path / "python")], str(tmp_path)).vllm == ""


def test_the_versions_are_those_that_the_interpreter_itself_finds(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    own = tmp_path / "venv/bin/python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run(
        [own, "-I", "-c", ask], check=True, capture_output=True, text=True
    ).stdout.strip()
    install_package(Path(site), "vllm", "0.33.0")
    found = subprocess.run(
        [own, "-I", "-c", "import importlib.metadata as m; print(m.version('vllm'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert read_versions(VLLM, [str(own)], "").vllm == found.stdout.strip() == "0.33.0"
    # And of the interpreter that runs this test, wherever it was installed.
    own_site = subprocess.run(
        [sys.executable, "-I", "-c", ask], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert own_site in site_folders(sys.executable)
