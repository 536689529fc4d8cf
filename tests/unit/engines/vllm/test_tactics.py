"""vLLM's tactics files: the rank rule as a law, and files of every content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.engines.evidence import Evidence, Unsound
from pretune.engines.vllm import tactics
from pretune.protocol import Versions

from tests.builders.agent_pod import KEY, managed_store, rank_file, rank_files

SERVE = ["vllm", "serve", "m"]


# --- the rank rule

sizes = st.tuples(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans()
)  # tp, pp, dp, ranks count on over dp


def world(tp: int, pp: int, dp: int, counts_on: bool, entries: int = 3) -> dict[str, bytes]:
    """A whole engine's files; its pipeline's stages tuned different numbers of ops."""
    files = {}
    for replica in range(dp):
        for rank in range(tp * pp):
            shown = rank + replica * tp * pp if counts_on else rank
            stage = rank // tp
            files[f"{KEY}/autotune_configs_dp{replica}_rank{shown}.json"] = rank_file(
                entries + stage
            )
    return files


def words(tp: int, pp: int) -> list[str]:
    return [*SERVE, "-tp", str(tp), f"--pipeline-parallel-size={pp}"]


def judged(files: Mapping[str, bytes], command: list[str]) -> Evidence:
    return tactics.judge(list(files), files.__getitem__, 0, command)


@given(sizes)
def test_a_whole_engines_files_pass_and_count_what_one_engine_loads(
    size: tuple[int, int, int, bool],
) -> None:
    tp, pp, dp, _ = size
    found = judged(world(*size), words(tp, pp))
    assert (found.layout, len(found.files)) == ("PerRank", tp * pp * dp)
    assert found.entries == sum(3 + stage for stage in range(pp))


@given(sizes.filter(lambda size: size[0] > 1), st.data())
def test_one_missing_file_of_a_tensor_parallel_group_is_found(
    size: tuple[int, int, int, bool], data: st.DataObject
) -> None:
    files = world(*size)
    del files[data.draw(st.sampled_from(sorted(files)))]
    with pytest.raises(Unsound) as refused:
        judged(files, words(size[0], size[1]))
    assert refused.value.reason == "IncompleteRanks"


@given(st.integers(2, 8), st.data())
def test_a_gap_is_found_without_knowing_the_engines_flags(count: int, data: st.DataObject) -> None:
    files = rank_files(count)
    missing = data.draw(st.integers(0, count - 2))
    del files[f"{KEY}/autotune_configs_dp0_rank{missing}.json"]
    with pytest.raises(Unsound, match=f"dp0_rank{missing}.json is missing"):
        judged(files, SERVE)


@given(st.integers(2, 6), st.integers(0, 5), st.integers(4, 9))
def test_one_rank_that_disagrees_is_found(count: int, which: int, entries: int) -> None:
    files = rank_files(count)
    files[f"{KEY}/autotune_configs_dp0_rank{which % count}.json"] = rank_file(entries)
    with pytest.raises(Unsound, match="the ranks disagree"):
        judged(files, SERVE)


def test_ranks_with_as_many_entries_of_other_operations_are_judged() -> None:
    """Each start of vLLM 0.32 would hang with them (docs/ranks.md); its own comparison, of counts, says nothing."""
    other = rank_file(3).replace(b"('op', 'Runner', ((2,", b"('another_op', 'Runner', ((2,")
    files = {**rank_files(2), f"{KEY}/autotune_configs_dp0_rank1.json": other}
    found = judged(files, SERVE)
    assert (
        found.unlike.endswith("rank1.json hold unlike entries of another_op")
        and found.unlike in found.message()
    )
    assert not judged(rank_files(2), SERVE).unlike
    stages = {**rank_files(1), f"{KEY}/autotune_configs_dp0_rank1.json": other}
    assert not judged(stages, words(1, 2)).unlike, "stages tune operations of their own"


def test_a_pipeline_stage_that_tuned_nothing_may_be_silent() -> None:
    files = {
        path: data
        for path, data in world(2, 2, 1, False).items()
        if "rank2" not in path and "rank3" not in path
    }
    assert judged(files, words(2, 2)).entries == 3


@given(st.permutations(sorted({**rank_files(3), **managed_store(2), "x.txt": b""})))
def test_the_order_of_a_listing_changes_nothing(paths: list[str]) -> None:
    files = {**rank_files(3), **managed_store(2), "x.txt": b""}
    assert tactics.judge(paths, files.__getitem__) == tactics.judge(
        sorted(files), files.__getitem__
    )


def test_records_of_products_count_as_tuned() -> None:
    files = {
        f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(0, _records={"moe": {"a": 1, "b": 2}})
    }
    assert (judged(files, SERVE).layout, judged(files, SERVE).entries) == ("PerRank", 2)


def test_what_flashinfer_could_not_tell_stays_unknown() -> None:
    files = {
        f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(
            1, {"gpu": "NVIDIA H200", "cuda_version": "unknown"}
        )
    }
    found = judged(files, SERVE)
    assert found.versions == Versions(gpu="NVIDIA H200")


@given(st.binary(max_size=200))
def test_no_content_of_a_file_raises_anything_but_unsound(raw: bytes) -> None:
    for path in (*managed_store(1), *rank_files(1), f"{KEY}/autotune_configs.json"):
        with suppress(Unsound):
            tactics.judge([path], lambda _: raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["_metadata", "_records", "key", "runner", "op"]), inner)
    ),
    max_leaves=8,
)


@given(json_values)
def test_no_json_raises_anything_but_unsound(value: object) -> None:
    raw = json.dumps(value).encode()
    for path in (*managed_store(1), *rank_files(1), f"{KEY}/autotune_configs.json"):
        with suppress(Unsound):
            tactics.judge([path], lambda _: raw)
