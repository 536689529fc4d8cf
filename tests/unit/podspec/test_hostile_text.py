"""Texts that a tenant writes are read in time that grows with their length, whatever they are."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from pretune.engines import command
from pretune.engines.command import runs_program, shell_words
from pretune.engines.vllm import cli
from pretune.manifests.agent_container import select_path_variables
from pretune.podspec import canonical, identity, template
from pretune.podspec.devices import MAX_GPUS, count_used_gpus
from pretune.podspec.preflight import find_refusal
from pretune.podspec.template import engine_of

from tests.builders.caches import spec
from tests.builders.constants import DEFAULT
from tests.builders.hostile_templates import growing_env
from tests.builders.strategies import law
from tests.builders.templates import engine
from tests.growth import MAX_GROWTH, growth


def of_a_script(script: str) -> Any:
    return command._script_words(script)


def of_a_value(value: str) -> Any:
    env = [{"name": "A", "value": "a"}, {"name": "PATH", "value": value}]
    return canonical.environment(env), select_path_variables(env)


def of_a_quantity(text: str) -> Any:
    with pytest.raises(ValueError, match="is no quantity"):
        canonical.parse_quantity(text)


def of_a_flag(word: str) -> Any:
    return shell_words(["sh", word, "x"]), cli.read_port(["sh", word])


def of_words(words: list[str]) -> Any:
    return cli.find_multi_pod_flag(words), cli.find_registration(words, {})


def of_the_nodes_address(word: str) -> Any:
    address = {"fieldRef": {"fieldPath": "status.hostIP"}}
    pod = engine(env=[{"name": "HOST_IP", "valueFrom": address}], args=[word])
    pod["spec"]["hostNetwork"] = True
    return find_refusal(pod, spec(), DEFAULT)


def of_an_image(image: str) -> Any:
    return template.moving_tag(image)


HOSTILE: dict[str, tuple[Callable[[Any], Any], Callable[[int], Any]]] = {
    "open references": (of_a_value, lambda n: "$(" * n),
    "open references before a closed one": (of_a_value, lambda n: "$(" * n + ")"),
    "open references after a closed one": (of_a_value, lambda n: "$(A)" + "$(" * n),
    "closed references": (of_a_value, lambda n: "$(A)" * n),
    "dollars": (of_a_value, lambda n: "$" * n),
    "brackets": (of_a_value, lambda n: ")" * n + "$(" * n),
    "digits that are no quantity": (of_a_quantity, lambda n: "1" * n + "x"),
    "digits after a point": (of_a_quantity, lambda n: "1." + "1" * n + "x"),
    "a quoted word": (of_a_script, lambda n: f"'{'a' * n}'"),
    "a double-quoted word": (of_a_script, lambda n: f'"{"a" * n}"'),
    "escapes in quotes": (of_a_script, lambda n: f'"{chr(92) * 2 * n}"'),
    "a word of many pieces": (of_a_script, lambda n: "a''" * n),
    "open quotes": (of_a_script, lambda n: "'" * (2 * n + 1)),
    "open quotes of both kinds": (of_a_script, lambda n: "'\"" * n),
    "escapes at the end": (of_a_script, lambda n: "\\" * (2 * n + 1)),
    "comments": (of_a_script, lambda n: "#\n" * n),
    "operators": (of_a_script, lambda n: ";" * n + "a;" * n),
    "a flag of a shell": (of_a_flag, lambda n: f"-{'c' * n}!"),
    "flags": (of_words, lambda n: ["--port", "1"] * n),
    "ray, again and again": (of_words, lambda n: ["ray", "start"] * n),
    "dynamo, nearly": (of_words, lambda n: ["-m", "dynam"] * n),
    "a flag's value": (of_words, lambda n: ["--kv-transfer-config", "m" * n]),
    "open references in args": (of_the_nodes_address, lambda n: "$(" * n),
    "names in args": (of_the_nodes_address, lambda n: "$" + "a" * n),
    "variables in args": (of_the_nodes_address, lambda n: "${a" * n),
    "an image's tag": (of_an_image, lambda n: "vllm:latest" + "-" * n),
    "an image's commit": (of_an_image, lambda n: "vllm:main-" + "a" * n),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_four_times_the_text_takes_four_times_as_long(name: str) -> None:
    work, make = HOSTILE[name]
    assert growth(work, make, 4_000 if work is of_words else 10_000) < MAX_GROWTH


# --- env that grows


def test_env_that_grows_by_each_variable_stays_small_and_keeps_a_fingerprint_of_its_own() -> None:
    values = canonical.environment(growing_env(40))
    assert sum(map(len, values.values())) < 3 * canonical.MAX_VALUE_CHARACTERS
    assert canonical.find_too_long(values)
    one, other = engine(env=growing_env(40)), engine(env=growing_env(40, references=9))
    assert identity.fingerprint(one, "") == identity.fingerprint(engine(env=growing_env(40)), "")
    assert identity.fingerprint(one, "") != identity.fingerprint(other, "")


def test_many_variables_that_each_grow_a_little_stay_small_together() -> None:
    env = [{"name": "A", "value": "x" * 100_000}]
    env += [{"name": f"B{n}", "value": "$(A)"} for n in range(900)]
    values = canonical.environment(env)
    assert sum(map(len, values.values())) < 400_000 and canonical.find_too_long(values) == "B1"


def test_an_engine_whose_env_grows_without_bound_is_refused_with_the_variable() -> None:
    refusal = find_refusal(engine(env=growing_env(8)), spec(), DEFAULT)
    assert refusal is not None and refusal.reason == "TooLarge"
    assert "spec.source.template.spec.containers[0].env: A" in refusal.message


def test_a_script_that_is_too_long_to_be_read_is_refused_with_its_place() -> None:
    script = "a " * command.MAX_SCRIPT_CHARACTERS
    assert shell_words(["sh", "-c", script]) == ["sh", "-c", script]
    pod = engine(command=["/bin/sh", "-c"], args=[script])
    refusal = find_refusal(pod, spec(), DEFAULT)
    assert refusal is not None and refusal.reason == "TooLarge"
    assert "spec.source.template.spec.containers[0].args[0]: a script" in refusal.message
    assert find_refusal(engine(args=[script]), spec(), DEFAULT) is None


def test_values_with_too_many_dollars_stay_as_they_are_written() -> None:
    value = "$$" * 9_000
    values = canonical.environment([{"name": name, "value": value} for name in "AB"])
    assert values["A"] == "$" * 9_000 and canonical.find_too_long(values) == "B"


def test_a_long_script_in_a_variable_is_no_reason_to_refuse() -> None:
    scripts = {f"SCRIPT{n}": "echo $(date)\n" * 1_500 for n in range(10)}
    values = canonical.environment(
        [{"name": name, "value": script} for name, script in scripts.items()]
    )
    assert canonical.find_too_long(values) is None


@pytest.mark.parametrize("name", ["(a+)+!", "(a", "a{", "[", "\\", "(?P<a", "a|b", "", ".*", "$"])
def test_a_variables_name_that_is_a_pattern_is_compared_as_it_is_written(name: str) -> None:
    address = {"name": name, "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}

    def refusal(word: str) -> Any:
        pod = engine(env=[address], args=["--served-model-name", word])
        pod["spec"]["hostNetwork"] = True
        return find_refusal(pod, spec(), DEFAULT)

    began = time.thread_time()
    assert refusal("$" + "a" * 40) is refusal("${HOST}") is None
    assert time.thread_time() - began < 1
    if name and ")" not in name:  # with which the kubelet ends a name
        assert refusal(f"$({name})").message.endswith(
            f".args: {name}: the address of the node, which a copy, on a network of its own,"
            " does not have"
        )


# --- the same as before


_OLD_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")


def old_environment(env: list[Any]) -> dict[str, str]:
    values: dict[str, str] = {}

    def resolve(match: re.Match[str]) -> str:
        return "$" if match[1] is None else values.get(match[1], f"\0({match[1]})")

    for variable in env:
        values[variable["name"]] = _OLD_REFERENCE.sub(resolve, variable["value"])
    return values


@law(
    st.lists(
        st.tuples(st.sampled_from("AB"), st.text("$()AB x", max_size=12)),
        max_size=4,
    )
)
def test_a_short_value_is_expanded_as_the_kubelet_does(pairs: list[tuple[str, str]]) -> None:
    env = [{"name": name, "value": value} for name, value in pairs]
    assert canonical.environment(env) == old_environment(env)


@law(st.text("ab-=#;|&<>()'\"\\ \n\t$é", max_size=16))
def test_a_script_has_the_words_that_shlex_finds(script: str) -> None:
    text = script.replace("\\\n", " ")
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        expected = list(lexer)
    except ValueError:
        expected = text.split()
    assert shell_words(["sh", "-c", script])[2:] == expected


@law(st.text("-abcsx!\n", max_size=6))
def test_the_flags_after_which_a_shell_takes_a_script_are_as_before(word: str) -> None:
    is_flag = re.match(r"-[a-z]*c[a-z]*$", word) is not None
    assert (shell_words(["sh", word, "a b"])[2:] == ["a", "b"]) == is_flag


@pytest.mark.parametrize("value", ["²", "1" * 5000, "١", "-1", "1.5"])
def test_what_is_no_small_number_is_none(value: str) -> None:
    assert cli.last_number(["--port", value], "--port") is None
    assert cli.find_multi_pod_flag(["--nnodes", value]) is not None
    assert cli.count_ranks(["-tp", value, "-pp", "2"]) is None


@pytest.mark.parametrize("size", ["9" * 9, "9" * 3000, "9" * 5000, "²"])
def test_the_gpus_of_an_engine_are_a_small_number(size: str) -> None:
    words = [word for flag in ("-tp", "-pp", "-dp", "-pcp") for word in (flag, size)]
    pod = engine(args=["serve", "q", *words])
    assert 1 <= count_used_gpus(pod, engine_of(pod, ""), {}) <= MAX_GPUS
    pod = engine().gpus("1e999")
    assert count_used_gpus(pod, engine_of(pod, ""), {}) == MAX_GPUS


def test_a_program_is_found_in_a_long_script() -> None:
    assert runs_program(["sh", "-c", "x " * 50_000 + "vllm serve"], "vllm")
