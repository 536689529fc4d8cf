"""What each cell should be, from the facts about each release; a run that differs is right, and is told in the document until this is
corrected with what it showed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.fidelity.releases import RELEASES

SHARED, MANAGED = "Shared", "Managed"


@dataclass(frozen=True)
class Expected:
    """`operations`: how many operations are profiled, in times of what one takes; None for an engine that ends. `says` and `operator`:
    words each of which has to be in one of the lines. `changes`: the signs of what changes in the folder, none else (outcome.shown)."""

    operations: int | None
    changes: str = ""
    says: tuple[str, ...] = ()
    operator: tuple[str, ...] = ()
    of_another: bool = False  # the engine is of another release, where one operation takes another number of profiles

    @property
    def starts(self) -> bool:
        return self.operations is not None


READ_ONLY_ERROR = "Read-only file system"


def expected(release: str) -> dict[str, Expected]:
    """By the cell's name."""
    layout = RELEASES[release].one
    common = {
        "cold": Expected(1, "+", _tuned(layout), ("Sealed", layout)),
        "no bundle": Expected(1, "+", _tuned(layout), ("Overlay: NotSealedYet", "seed: NoBundle")),
        "nothing to tune": Expected(0, "", (), ("None: NothingToTune", "NothingToTune", "Empty")),
        "image swapped": Expected(
            1, "+", (), ("Overlay: Given", "seed: VersionsDiffer"), of_another=True
        ),
    }
    return common | (_managed() if layout == MANAGED else _files(release, layout)) | _two(release)


def _managed() -> dict[str, Expected]:
    given = ("ReadOnly: Given",)
    warm = Expected(0, "", ("Preloaded",), given)
    missing = Expected(1, "", ("Preloaded", "Failed to persist"), given)
    other = Expected(1, "", ("Failed to persist",), given)
    by_hand = ("None: OverrideSet",)
    return {
        "read-only by hand, another configuration": replace(
            warm, operator=("not asked",)
        ),  # the store knows no keys
        "warm": warm,
        "warm as another uid": warm,
        "an operation is missing": missing,
        "another GPU product": other,
        "another FlashInfer": other,
        "another FlashInfer, unrecorded": other,
        "read-only forced": warm,
        "read-only forced, an operation is missing": missing,
        "read-only by hand": replace(warm, operator=by_hand),
        "read-only by hand, another GPU product": replace(other, operator=by_hand),
    }


def _files(release: str, layout: str) -> dict[str, Expected]:
    """Shared and PerRank: files that are read whole, and written whole."""
    shared = layout == SHARED
    given = ("Overlay: Given", "seed: Seeded")
    by_hand = ("None: OverrideSet",)
    # Seen: with one shared file vLLM writes it again at each start, with the bytes that it read if FlashInfer saved none.
    again = "=" if shared else ""
    warm = Expected(0, again, ("Loaded",), given)
    missing = Expected(1, "~", ("Loaded", "Saved"), given)
    # The foreign file is skipped, and FlashInfer never overwrites it: each start tunes.
    other = Expected(1, again, ("created in a different environment",), given)
    crash = Expected(None, "", (READ_ONLY_ERROR,))
    forced = given if shared else ("ReadOnly: Given",)
    key_has_gpu = (0, 27) <= RELEASES[release].number < (0, 30)
    return {
        "warm": warm,
        "warm as another uid": warm,
        "an operation is missing": missing,
        "another GPU product": Expected(1, "+", ("Saved",), given) if key_has_gpu else other,
        "another FlashInfer": Expected(
            1, "+", _tuned(layout), ("Overlay: Given", "seed: VersionsDiffer")
        ),
        "another FlashInfer, unrecorded": other,
        "read-only forced": replace(warm, operator=forced),
        "read-only forced, an operation is missing": replace(
            missing if shared else crash, operator=forced
        ),
        "read-only by hand": replace(crash if shared else warm, operator=by_hand),
        # Seen: 0.32 writes nothing where the file is another environment's, so it comes up.
        "read-only by hand, another GPU product": replace(
            crash if shared else other, operator=by_hand
        ),
        "read-only by hand, another configuration": replace(crash, operator=("not asked",)),
    }


def _two(release: str) -> dict[str, Expected]:
    """Two ranks: what no file of its own is kept for is refused, and its pods start as they are."""
    number = RELEASES[release].number
    names = ("two GPUs", "two GPUs, an operation is missing")
    if number < (0, 32):
        refused = Expected(
            1, "", (), ("None: NotTunable", "ReleaseTooOld" if number < (0, 27) else "SharedLayout")
        )
        return dict(zip(names, (refused, replace(refused, operations=2)), strict=True))
    warm = Expected(0, "", ("Loaded",), ("Overlay: Given", "seed: Seeded"))
    tuned = Expected(1, "~", ("Loaded", "Saved"), warm.operator)
    return dict(zip(names, (warm, tuned if number < (0, 33) else warm), strict=True))


def _tuned(layout: str) -> tuple[str, ...]:
    return ("managed autotune cache",) if layout == MANAGED else ("Saved",)
