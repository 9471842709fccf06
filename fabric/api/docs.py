"""/docs and /openapi.json, which work without any other host.

The pages of Swagger UI come from the package `swagger_ui_bundle`, so nothing is loaded from a content network. That
version of it reads OpenAPI 3.0, and FastAPI writes 3.1: `as_3_0` says the same in the older words.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from fabric.api.problems import INVALID, documented
from fabric.api.schemas import FieldError, Problem

ASSETS = "/docs/assets"
OPENAPI = "/openapi.json"
ABOUT = """Deploy many instances of an image across racks, follow them, and see why they are where they are.

Errors are problem details (RFC 9457): `type` is for programs, `detail` for people, `errors` has one entry for each
field that is wrong, `reasons` says why something does not fit. 503 comes with `Retry-After`: nothing was changed, or it
can be asked again without harm.
"""


def add_docs(app: FastAPI) -> None:
    app.mount(ASSETS, StaticFiles(directory=str(swagger_ui_path)), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=OPENAPI,
            title=app.title,
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
        )

    described: dict[str, Any] = {}

    @app.get(OPENAPI, include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        if not described:
            described.update(describe(app))
        return described


def describe(app: FastAPI) -> dict[str, Any]:
    """The application as an OpenAPI 3.0 document."""
    document = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in (Problem, FieldError):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        schemas[model.__name__] = schema
    for methods in document["paths"].values():
        for operation in methods.values():  # the framework's own form of it is never sent
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"]["422"] = documented(INVALID)[422]
    document["openapi"] = "3.0.3"
    older = as_3_0(document)
    assert isinstance(older, dict)
    return older


def as_3_0(value: Any) -> Any:
    """JSON Schema of OpenAPI 3.1 in the words of 3.0: `nullable`, `enum` for `const`, one `example`."""
    if isinstance(value, list):
        return [as_3_0(one) for one in value]
    if not isinstance(value, dict):
        return value
    older = {key: as_3_0(one) for key, one in value.items()}
    if "const" in older:
        older["enum"] = [older.pop("const")]
    examples = older.get("examples")
    if isinstance(examples, list):
        del older["examples"]
        if examples:
            older["example"] = examples[0]
    choices = older.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        rest = [one for one in choices if one != {"type": "null"}]
        del older["anyOf"]
        older["nullable"] = True
        older.update(rest[0] if len(rest) == 1 and "$ref" not in rest[0] else {"anyOf": rest})
    older.pop("propertyNames", None)
    return older
