"""The OpenAPI document: in the words that the bundled pages understand, whole, and without any other host."""

from __future__ import annotations

import json
from typing import Any

from fabric.api.app import create_app
from fabric.api.control import ControlPlane
from fabric.api.docs import as_3_0, describe
from fabric.api.settings import ApiConfig

PATHS = {
    "/v1/deployments": {"post", "get"},
    "/v1/deployments/{id}": {"get", "patch", "delete"},
    "/v1/deployments/{id}/events": {"get"},
    "/v1/deployments/{id}/trace": {"get"},
    "/v1/instances": {"get"},
    "/v1/instances/{id}": {"get"},
    "/v1/instances/{id}/log": {"get"},
    "/v1/nodes": {"get"},
    "/v1/nodes/{id}/cordon": {"post"},
    "/v1/nodes/{id}/uncordon": {"post"},
    "/v1/nodes/{id}/drain": {"post", "get"},
    "/v1/audit": {"get", "post"},
    "/v1/brake": {"get"},
    "/v1/brake/release": {"post"},
    "/v1/racks": {"get"},
    "/v1/leaders": {"get"},
    "/v1/flavors": {"get"},
    "/v1/capacity": {"get"},
    "/v1/images": {"get"},
    "/v1/images/{name}": {"put", "get", "delete"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
}


def document() -> dict[str, Any]:
    return describe(create_app(ControlPlane(ApiConfig("127.0.0.1:1"))))


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(one) for one in value.values()))
    if isinstance(value, list):
        return set().union(*(references(one) for one in value))
    return set()


def test_the_paths_are_those_of_the_interface() -> None:
    assert {path: set(methods) for path, methods in document()["paths"].items()} == PATHS


def test_every_reference_leads_somewhere() -> None:
    found = document()
    names = {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}
    assert references(found) <= names


def test_the_words_are_those_of_3_0() -> None:
    found = document()
    assert found["openapi"] == "3.0.3"
    text = json.dumps(found)
    assert '"type": "null"' not in text
    assert '"const"' not in text


def test_a_deployment_has_an_example_and_its_problems() -> None:
    found = document()
    example = found["components"]["schemas"]["DeploymentRequest"]["example"]
    assert example == {"image": "web", "flavor": "Large", "count": 50}
    answers = found["paths"]["/v1/deployments"]["post"]["responses"]
    assert {"200", "202", "400", "413", "415", "422", "503"} <= set(answers)
    assert set(answers["422"]["content"]) == {"application/problem+json"}
    assert "unknown-image" in answers["422"]["content"]["application/problem+json"]["examples"]


def test_older_words() -> None:
    assert as_3_0({"anyOf": [{"type": "string"}, {"type": "null"}]}) == {"type": "string", "nullable": True}
    assert as_3_0({"const": 5}) == {"enum": [5]}
    assert as_3_0({"examples": [1, 2]}) == {"example": 1}
    assert as_3_0({"examples": {"a": {"value": 1}}}) == {"examples": {"a": {"value": 1}}}
    assert as_3_0({"anyOf": [{"$ref": "#/x"}, {"type": "null"}]}) == {"anyOf": [{"$ref": "#/x"}], "nullable": True}
