"""The rules for any object: versions, patches, ownership, selectors, what survives a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.kube import patches, schema, selectors
from sandbox.kube.errors import ApiError
from sandbox.kube.ownership import Writer, apply, from_fields_v1, leaves, to_fields_v1
from sandbox.kube.registry import Registry
from sandbox.kube.resources import CONFIGMAPS, LEASES, NAMESPACES
from sandbox.kube.store import Key, Store
from sandbox.kube.tables import age

WRITER = Writer("me", api_version="v1")
ALICE, BOB = Writer("alice", "Apply"), Writer("bob", "Apply")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(Store(tmp_path / "kube.sqlite"))
    made.create(NAMESPACES, "", {"metadata": {"name": "models"}}, WRITER)
    return made


def config_map(name: str = "a", **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": data}


def test_versions_grow_for_ever_across_deletion_and_restart(registry: Registry, tmp_path: Path) -> None:
    registry.create(CONFIGMAPS, "models", config_map(x="1"), WRITER)
    registry.delete(CONFIGMAPS, "models", "a")
    last = registry.store.version
    registry.store.close()
    again = Registry(Store(tmp_path / "kube.sqlite"))
    assert again.store.version == last
    assert again.store.get(Key(CONFIGMAPS.id, "models", "a")) is None
    assert again.store.get(Key(NAMESPACES.id, "", "models")) is not None
    assert again.store.too_old(last - 1)
    assert not again.store.too_old(last)


def test_a_write_that_changes_nothing_is_no_write(registry: Registry) -> None:
    made = registry.create(LEASES, "models", {"metadata": {"name": "a"}, "spec": {"holderIdentity": "x"}}, WRITER)
    same = registry.update(LEASES, "models", "a", made, WRITER)
    assert same["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    labelled = registry.update(LEASES, "models", "a", patches.merge(made, {"metadata": {"labels": {"l": "1"}}}), WRITER)
    assert labelled["metadata"]["generation"] == 1
    moved = registry.update(LEASES, "models", "a", patches.merge(labelled, {"spec": {"holderIdentity": "y"}}), WRITER)
    assert moved["metadata"]["generation"] == 2


def test_dry_run_stores_nothing(registry: Registry) -> None:
    registry.create(CONFIGMAPS, "models", config_map(), WRITER, dry_run=True)
    with pytest.raises(ApiError, match='configmaps "a" not found'):
        registry.get(CONFIGMAPS, "models", "a")


def test_finalizers_hold_an_object_until_the_last_is_gone(registry: Registry) -> None:
    body = {**config_map(), "metadata": {"name": "a", "finalizers": ["f"]}}
    registry.create(CONFIGMAPS, "models", body, WRITER)
    marked = registry.delete(CONFIGMAPS, "models", "a")
    assert marked["metadata"]["deletionTimestamp"]
    registry.update(CONFIGMAPS, "models", "a", patches.merge(marked, {"metadata": {"finalizers": None}}), WRITER)
    with pytest.raises(ApiError, match="not found"):
        registry.get(CONFIGMAPS, "models", "a")


def test_what_an_object_owns_goes_with_it(registry: Registry) -> None:
    owner = registry.create(CONFIGMAPS, "models", config_map("owner"), WRITER)
    reference = {"uid": owner["metadata"]["uid"], "name": "owner", "kind": "ConfigMap", "apiVersion": "v1"}
    registry.create(CONFIGMAPS, "models", {"metadata": {"name": "owned", "ownerReferences": [reference]}}, WRITER)
    registry.delete(CONFIGMAPS, "models", "owner")
    assert list(registry.store.all(CONFIGMAPS.id)) == []


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (config_map("A"), 422, "lowercase RFC 1123"),
        ({"metadata": {}}, 422, "name or generateName is required"),
        ({"kind": "Secret", "metadata": {"name": "a"}}, 400, "does not match the expected"),
        ({"metadata": {"name": "a", "namespace": "other"}}, 400, "does not match the namespace"),
        ({"metadata": {"name": "a", "resourceVersion": "3"}}, 400, "resourceVersion should not be set"),
    ],
)
def test_what_cannot_be_created(registry: Registry, body: Any, code: int, text: str) -> None:
    with pytest.raises(ApiError, match=text) as refused:
        registry.create(CONFIGMAPS, "models", body, WRITER)
    assert refused.value.code == code


# The examples of RFC 7386, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert patches.merge(target, patch) == result


# The examples of RFC 6902, appendix A.
@pytest.mark.parametrize(
    ("document", "operation", "result"),
    [
        ({"foo": "bar"}, {"op": "add", "path": "/baz", "value": "qux"}, {"foo": "bar", "baz": "qux"}),
        ({"foo": ["a", "c"]}, {"op": "add", "path": "/foo/1", "value": "b"}, {"foo": ["a", "b", "c"]}),
        ({"foo": ["a"]}, {"op": "add", "path": "/foo/-", "value": "b"}, {"foo": ["a", "b"]}),
        ({"a": 1, "b": 2}, {"op": "remove", "path": "/a"}, {"b": 2}),
        ({"a": [1, 2, 3]}, {"op": "remove", "path": "/a/1"}, {"a": [1, 3]}),
        ({"a": 1}, {"op": "replace", "path": "/a", "value": 2}, {"a": 2}),
        ({"a": {"b": 1}, "c": {}}, {"op": "move", "from": "/a/b", "path": "/c/d"}, {"a": {}, "c": {"d": 1}}),
        ({"a": 1}, {"op": "copy", "from": "/a", "path": "/b"}, {"a": 1, "b": 1}),
        ({"a/b": 1, "m~n": 2}, {"op": "test", "path": "/a~1b", "value": 1}, {"a/b": 1, "m~n": 2}),
    ],
)
def test_json_patch(document: Any, operation: Any, result: Any) -> None:
    assert patches.json_patch(document, [operation]) == result


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": 2},
        {"op": "remove", "path": "/b"},
        {"op": "replace", "path": "/b", "value": 1},
        {"op": "add", "path": "/b/c", "value": 1},
        {"op": "add", "path": "b", "value": 1},
        {"op": "twist", "path": "/a"},
        {"path": "/a"},
    ],
)
def test_a_json_patch_that_does_not_apply_is_refused_whole(operation: Any) -> None:
    document = {"a": 1}
    with pytest.raises(ApiError) as refused:
        patches.json_patch(document, [{"op": "replace", "path": "/a", "value": 1}, operation])
    assert refused.value.code == 422
    assert document == {"a": 1}


def test_strategic_patch_merges_lists_by_key_and_follows_directives() -> None:
    target = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "args": ["x"], "m": {"k": 1}}
    patch = {"env": [{"name": "B", "value": "3"}, {"name": "A", "$patch": "delete"}, {"name": "C"}], "args": ["y"]}
    assert patches.strategic(target, {**patch, "m": {"$patch": "replace", "n": 2}}) == {
        "env": [{"name": "B", "value": "3"}, {"name": "C"}], "args": ["y"], "m": {"n": 2},
    }  # fmt: skip


def applied(live: Any, wanted: Any, writer: Writer, force: bool = False) -> Any:
    return apply(live, wanted, writer, force, "2026-01-01T00:00:00Z")


def test_apply_owns_removes_and_disputes() -> None:
    live = {"metadata": {}}
    first = applied(live, {"data": {"a": "1", "b": "1"}}, ALICE)
    both = applied(first, {"data": {"b": "1", "c": "1"}}, BOB)
    with pytest.raises(ApiError, match=r'1 conflict: conflict with "alice" using .*: \.data\.a'):
        applied(both, {"data": {"a": "2"}}, BOB)
    without = applied(both, {"data": {}}, ALICE)
    assert without["data"] == {"b": "1", "c": "1"}  # b is bob's too
    taken = applied(both, {"data": {"a": "2"}}, BOB, force=True)
    assert taken["data"] == {"a": "2", "b": "1"}
    owners = {e["manager"]: e["fieldsV1"] for e in taken["metadata"]["managedFields"]}
    assert owners == {"alice": {"f:data": {"f:b": {}}}, "bob": {"f:data": {"f:a": {}}}}


def test_apply_merges_environment_by_name() -> None:
    live = {"metadata": {}, "spec": {"env": [{"name": "KEPT", "value": "1"}]}}
    once = applied(live, {"spec": {"env": [{"name": "MINE", "value": "2"}]}}, ALICE)
    assert [e["name"] for e in once["spec"]["env"]] == ["KEPT", "MINE"]
    gone = applied(once, {"spec": {}}, ALICE)
    assert gone["spec"]["env"] == [{"name": "KEPT", "value": "1"}]


JSON = st.recursive(
    st.integers() | st.text("ab", max_size=3),
    lambda inner: (
        st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3) | st.lists(inner, max_size=2)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), JSON, max_size=4))
def test_applying_twice_changes_nothing_and_fields_round_trip(wanted: Any) -> None:
    once = applied({"metadata": {}}, {"spec": wanted}, ALICE)
    assert applied(once, {"spec": wanted}, ALICE) == once
    assert once["spec"] == wanted
    paths = set(leaves({"spec": wanted}))
    assert from_fields_v1(to_fields_v1(paths)) == paths


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True), ("a=1", True), ("a==1,b!=1", True), ("a=2", False), ("a in (1, 2)", True), ("a notin (1)", False),
        ("c", False), ("!c", True), ("!a", False), ("a,!c", True),
    ],
)  # fmt: skip
def test_label_selectors(text: str, matches: bool) -> None:
    assert selectors.labels(text)({"metadata": {"labels": {"a": "1", "b": "2"}}}) is matches


def test_field_selectors_and_bad_ones() -> None:
    obj = {"metadata": {"name": "x"}}
    assert selectors.fields("metadata.name=x,metadata.namespace!=y")(obj)
    assert not selectors.fields("metadata.name!=x")(obj)
    for bad in (selectors.fields, selectors.labels):
        with pytest.raises(ApiError, match="=") as refused:
            bad("a=b=c")
        assert refused.value.code == 400


def test_schema_prunes_and_finds_types() -> None:
    obj = {
        "spec": {"predictor": {"minReplicas": "2", "model": {"storageUri": 3, "wrong": 1}, "tolerations": [{"any": 1}]}}
    }
    pruned, found = schema.prune(obj, schema.inference_service())
    assert found.unknown == ["spec.predictor.model.wrong"]
    assert [path for path, _ in found.problems] == [
        "spec.predictor.minReplicas",
        "spec.predictor.model.storageUri",
    ]
    assert pruned["spec"]["predictor"]["tolerations"] == [{"any": 1}]


def test_age_is_short() -> None:
    assert age("2020-01-01T00:00:00Z").endswith("d")
