"""The keys and their JSON Schema."""

from typing import Any

from aop_proxy.schema import json_schema, keys


def test_every_key_says_what_it_is_for() -> None:
    """Each key has a description, which the schema, the help and the sentences use."""
    assert not [path for path, field in keys() if not field.description]


def test_schema_knows_shorthands_and_units() -> None:
    """Draft 2020-12, with durations, sizes and the short forms of addresses and backends."""
    schema: dict[str, Any] = json_schema()
    parts = schema["$defs"]
    text, mapping = parts["UpstreamPart"]["anyOf"]
    assert text == mapping["properties"]["url"]
    one, several = parts["SitePart"]["properties"]["upstream"]["anyOf"]
    assert one == several["items"]
    expected = {
        "anyOf": [
            {
                "type": "string",
                "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)?$",
                "description": "`10s`, `500ms`, `5m`, `1h` or a number of seconds",
            },
            {"type": "number", "exclusiveMinimum": 0, "description": "seconds"},
        ],
        "default": "1h",
        "description": "Without a byte in either direction",
        "title": "Idle",
    }
    assert expected == parts["TimeoutsPart"]["properties"]["idle"]
