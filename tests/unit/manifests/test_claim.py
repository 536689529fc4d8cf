"""The cache's own claim."""

from __future__ import annotations

import kubernetes_validate
import pytest
from pretune.api.types import Object
from pretune.manifests.claim import build_claim

from tests.builders.caches import spec
from tests.builders.constants import KEY


def claim(**fields: object) -> Object:
    return build_claim(KEY, spec(storage={"claim": fields}))


def test_the_least_that_works_is_a_claim_for_many_readers_of_the_default_class() -> None:
    assert claim() == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": "pretune-qwen3",
            "namespace": "inference",
            "labels": {"pretune.dev/cache": "qwen3", "pretune.dev/role": "claim"},
            "annotations": {"pretune.dev/when-deleted": "Delete", "pretune.dev/size": "1Gi"},
        },
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }


@pytest.mark.parametrize("name", ["fast-rwx", ""])
def test_a_class_is_named_as_asked_and_an_empty_name_is_not_the_default_class(name: str) -> None:
    assert claim(storageClassName=name)["spec"]["storageClassName"] == name


def test_size_mode_and_what_becomes_of_it_are_as_asked() -> None:
    given = claim(size=2**30, accessModes=["ReadWriteOnce"], whenDeleted="Retain")
    assert given["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1073741824"}},
    }
    assert given["metadata"]["annotations"] == {
        "pretune.dev/when-deleted": "Retain",
        "pretune.dev/size": "1073741824",
    }


def test_a_claim_has_no_owner_so_that_it_outlives_its_cache_while_pods_name_it() -> None:
    assert "ownerReferences" not in claim()["metadata"]


def test_the_claim_is_what_the_api_knows() -> None:
    kubernetes_validate.validate(claim(storageClassName="fast"), "1.34", strict=True)
