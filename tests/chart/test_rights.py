"""The rights of controller and webhook: few, none of them a wildcard, and each beside the code that uses it.

That nothing is missing is proven on a cluster (tests/cluster): here they are read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
import yaml
from pretune.kube.client import KNOWN_RESOURCES

from tests.chart.conftest import CHART, NAMESPACE, ROOT, Object, Render, only

COMPONENTS = ("controller", "webhook")
PRODUCT = ROOT / "operator/pretune"
EXTRA = {"apiGroups": ["argoproj.io"], "resources": ["rollouts"]}
READ = {"get", "list", "watch"}


def text(component: str) -> str:
    return (CHART / "templates" / component / "rights.yaml").read_text()


def rules_in_templates() -> list[tuple[str, Object]]:
    """Return each rule in the templates with the comment above it, which may have several lines."""
    found = []
    for component in COMPONENTS:
        for comment, rule in re.findall(
            r"^# used by (.+\n(?:# .+\n)*)((?:[- ] .+\n)+)", text(component), re.MULTILINE
        ):
            parsed, *more = yaml.safe_load(re.sub(r"{{.*?}}", "[]", rule))
            assert not more, f"{component}/rights.yaml: no '# used by' above the rule {more[0]}"
            found.append((re.sub(r"\n# +", " ", comment).strip(), parsed))
    return found


def functions() -> set[str]:
    """Return every function of the operator: `package.module.function`, `package.module.Class.method`."""
    found = set()
    for path in PRODUCT.rglob("*.py"):
        module = ".".join(path.relative_to(PRODUCT).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            inside = node.body if isinstance(node, ast.ClassDef) else [node]
            prefix = f"{module}.{node.name}." if isinstance(node, ast.ClassDef) else f"{module}."
            found |= {
                prefix + node.name
                for node in inside
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


@pytest.mark.parametrize(
    ("comment", "rule"),
    rules_in_templates(),
    ids=[f"{rule['resources']} {rule['verbs']}" for _, rule in rules_in_templates()],
)
def test_each_right_names_the_code_that_uses_it(comment: str, rule: Object) -> None:
    users, _, reason = comment.partition(": ")
    assert reason, "says what for"
    assert set(users.split(", ")) <= functions()


def test_every_rule_names_its_users() -> None:
    rules = sum(
        len(re.findall(r"^- apiGroups:", text(component), re.MULTILINE)) for component in COMPONENTS
    )
    assert len(rules_in_templates()) == rules, "a rule without '# used by' above it"


def rules(
    render: Render,
    kind: str = "ClusterRole",
    values: Object | None = None,
    component: str = "controller",
) -> list[Object]:
    return list(only(render(values), kind, f"pretune-{component}")["rules"])


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("kind", ["ClusterRole", "Role"])
def test_no_right_is_a_wildcard_or_leads_to_more_rights(
    render: Render, kind: str, component: str
) -> None:
    for rule in rules(render, kind, {"sources": {"extraRules": [EXTRA]}}, component):
        for words in (rule["apiGroups"], rule["resources"], rule["verbs"]):
            assert words and "*" not in "".join(words)
        assert not {"impersonate", "bind", "escalate"} & set(rule["verbs"])
        assert not {"pods/exec", "serviceaccounts/token", "nodes"} & set(rule["resources"])
        # By name only, and in no other namespace.
        if {"secrets", "mutatingwebhookconfigurations"} & set(rule["resources"]):
            assert rule["resourceNames"] and component == "controller"
            assert "secrets" not in rule["resources"] or kind == "Role"
        assert rule["apiGroups"] != ["rbac.authorization.k8s.io"]


def test_workloads_are_only_read_and_pods_are_neither_created_nor_replaced(render: Render) -> None:
    verbs: dict[str, set[str]] = {}
    for rule in rules(render):
        for resource in rule["resources"]:
            verbs[resource] = verbs.get(resource, set()) | set(rule["verbs"])
    assert verbs.pop("pods") - READ == {"patch", "delete"}
    workloads = (
        "deployments",
        "statefulsets",
        "daemonsets",
        "replicasets",
        "controllerrevisions",
        "storageclasses",
    )
    assert all(verbs[workload] <= READ for workload in workloads)


LOGS = {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}


def test_logs_may_be_read_only_if_a_value_says_so(render: Render) -> None:
    kinds = [(kind, component) for kind in ("ClusterRole", "Role") for component in COMPONENTS]
    for kind, component in kinds:
        asked_for = rules(render, kind, {"proof": {"readLogs": True}}, component)
        without = rules(render, kind, component=component)
        assert not any("pods/log" in rule["resources"] for rule in without)
        more = [rule for rule in asked_for if rule not in without]
        assert more == ([LOGS] if (kind, component) == ("ClusterRole", "controller") else [])


def test_the_webhook_only_reads(render: Render) -> None:
    both = rules(render, component="webhook") + rules(render, "Role", component="webhook")
    assert both and all(set(rule["verbs"]) <= READ for rule in both)
    assert {resource for rule in both for resource in rule["resources"]} == {
        *("autotunecaches", "leases", "replicasets", "controllerrevisions", "jobs")
    }


def test_only_the_author_of_a_cache_may_change_its_spec(render: Render) -> None:
    verbs = {
        tuple(rule["resources"]): set(rule["verbs"])
        for rule in rules(render)
        if rule["apiGroups"] == ["pretune.dev"]
    }
    assert verbs == {("autotunecaches",): READ, ("autotunecaches/status",): {"patch"}}


def test_leases_are_used_only_in_the_releases_namespace(render: Render) -> None:
    for component in COMPONENTS:
        assert not any("leases" in rule["resources"] for rule in rules(render, component=component))
        assert all(
            rule["resources"] in (["leases"], ["secrets"])
            for rule in rules(render, "Role", component=component)
        )


def test_the_kinds_of_a_value_are_only_read(render: Render) -> None:
    more = [
        rule
        for rule in rules(render, values={"sources": {"extraRules": [EXTRA]}})
        if rule not in rules(render)
    ]
    assert [{**rule, "verbs": set(rule["verbs"])} for rule in more] == [{**EXTRA, "verbs": READ}]


ASKS = {"get": {"get"}, "list": {"list"}, "watch": {"list", "watch"}}
RUN_BY = (
    "controller",
    "kube",
    "origin",
    "webhook",
)  # where the API is read; all but the package webhook: the controller's right


def calls_that_read() -> Iterator[tuple[str, str, str, str]]:
    """Yield component, place, constant and verb of each call in the operator that may read.

    Each constant in a call is yielded, since it may be a kind.
    """
    for path in PRODUCT.rglob("*.py"):
        place = path.relative_to(PRODUCT).with_suffix("").parts[0]
        if place not in RUN_BY:
            continue
        component = "webhook" if place == "webhook" else "controller"
        for call in (
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ):
            constants = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
            if isinstance(call.func, ast.Attribute):
                for verb in ASKS.get(call.func.attr, ()):
                    yield from (
                        (component, f"{path.stem}:{call.lineno}", str(constant), verb)
                        for constant in constants
                    )


def test_every_read_of_a_kind_has_its_verb(render: Render) -> None:
    kinds = {kind: resource.plural for (_, kind), resource in KNOWN_RESOURCES.items()}
    found = [call for call in calls_that_read() if call[2] in kinds]
    assert {kind for _, _, kind, _ in found} >= {"Pod", "Job", "ConfigMap", "Event", "StorageClass"}
    for component, place, kind, verb in found:
        allowed = {
            word
            for rule in rules(render, component=component) + rules(render, "Role", None, component)
            if kinds[kind] in rule["resources"]
            for word in rule["verbs"]
        }
        assert verb in allowed, f"{place} needs {verb} of {kinds[kind]}"


def test_every_kind_that_the_client_knows_has_a_rule_and_no_other(render: Render) -> None:
    both = rules(render) + rules(render, "Role")
    ruled = {
        (group, resource.partition("/")[0])
        for rule in both
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    known = {
        (version.rpartition("/")[0], resource.plural)
        for (version, _), resource in KNOWN_RESOURCES.items()
    }
    assert ruled == known


def documented() -> Iterator[tuple[str, str, str]]:
    """Yield component, resource and verb of each line of the table in docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text()
    section = text.partition("\n## Rights\n")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] in COMPONENTS:
            for resource in cells[1].partition(" in its own")[0].split(", "):
                yield from ((cells[0], resource, verb) for verb in cells[2].split(", "))


def test_the_guide_to_operations_lists_each_right_and_no_other(render: Render) -> None:
    granted = {
        (component, resource, verb)
        for component in COMPONENTS
        for kind in ("ClusterRole", "Role")
        for rule in rules(render, kind, {"proof": {"readLogs": True}}, component)
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert set(documented()) == granted


def test_editors_of_a_namespace_may_edit_its_caches_but_not_their_status(render: Render) -> None:
    for role in render():
        labels = role["metadata"].get("labels", {})
        if role["kind"] != "ClusterRole" or not any("aggregate-to" in label for label in labels):
            continue
        for rule in role["rules"]:
            assert (rule["apiGroups"], rule["resources"]) == (["pretune.dev"], ["autotunecaches"])
            assert "*" not in rule["verbs"]


# --- controller.namespaces

LIMITED: Object = {"controller": {"namespaces": ["inference", "staging"]}}


def grants(documents: list[Object], component: str) -> dict[str, list[Object]]:
    """Return the rules that the component's account gets, by namespace; "": the whole cluster."""
    roles = {
        (role["kind"], role["metadata"].get("namespace", ""), role["metadata"]["name"]): role
        for role in documents
        if role["kind"] in ("Role", "ClusterRole")
    }
    account = {"controller": "pretune", "webhook": "pretune-webhook"}[component]
    found: dict[str, list[Object]] = {}
    for binding in documents:
        if not binding.get("roleRef") or binding["subjects"][0]["name"] != account:
            continue
        place, ref = binding["metadata"].get("namespace", ""), binding["roleRef"]
        assert binding["kind"] == f"{ref['kind']}Binding"
        found[place] = found.get(place, []) + roles[ref["kind"], place, ref["name"]]["rules"]
    return found


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_value_limits_every_right_on_tenants_objects_to_namespaces(
    render: Render, component: str
) -> None:
    everywhere, limited = grants(render(), component), grants(render(LIMITED), component)
    cluster_wide = limited.pop("", [])
    assert {resource for rule in cluster_wide for resource in rule["resources"]} <= {
        "storageclasses",
        "mutatingwebhookconfigurations",
    }
    assert limited.keys() == {"inference", "staging", NAMESPACE}
    assert limited[NAMESPACE] == everywhere[NAMESPACE]
    for namespace in ("inference", "staging"):
        assert [rule for rule in everywhere[""] if rule not in limited[namespace]] == cluster_wide
        assert all(rule in everywhere[""] for rule in limited[namespace])


def test_a_value_limits_the_webhook_and_the_authors_to_namespaces(render: Render) -> None:
    documents = render(LIMITED)
    (webhook,) = only(documents, "MutatingWebhookConfiguration")["webhooks"]
    terms = webhook["namespaceSelector"]["matchExpressions"]
    name = "kubernetes.io/metadata.name"
    assert {"key": name, "operator": "In", "values": ["inference", "staging"]} in terms
    policy = only(documents, "ValidatingAdmissionPolicy", "pretune-author")["spec"]
    assert policy["validations"][0]["expression"] == (
        "request.namespace in ['inference','staging']"
    )


def test_in_two_releases_of_one_namespace_each_has_its_own_roles(render: Render) -> None:
    names = [
        (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
        for release in ("a", "b")
        for document in render({"controller": {"namespaces": [NAMESPACE]}}, release)
        if document["kind"] != "CustomResourceDefinition"
    ]
    assert len(names) == len(set(names))
