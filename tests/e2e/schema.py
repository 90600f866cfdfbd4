# SPDX-License-Identifier: Apache-2.0
"""JSON Schema (draft 2020-12), the part that openapi.json uses. A keyword it does not know is an error: nothing is checked by halves."""
import re

NOTES = {"description", "default", "title", "$comment"}
TYPES = {
    "object": lambda v: isinstance(v, dict), "array": lambda v: isinstance(v, list), "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool), "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}


class Invalid(Exception):
    def __init__(self, path, why):
        super().__init__("%s: %s" % (path or "/", why))


def resolve(root, schema):
    while "$ref" in schema:
        at = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            at = at[part]
        schema = at
    return schema


def passes(root, schema, value, path):
    try:
        validate(root, schema, value, path)
    except Invalid:
        return False
    return True


def same(a, b):
    return type(a) is type(b) and a == b


def validate_object(root, s, value, path):
    for name in s.get("required", ()):
        if name not in value:
            raise Invalid(path, "lacks " + name)
    known, more = s.get("properties", {}), s.get("additionalProperties", True)
    for name, item in value.items():
        if name in known:
            validate(root, known[name], item, path + "/" + name)
        elif more is False:
            raise Invalid(path, "has the unknown member " + name)
        elif more is not True:
            validate(root, more, item, path + "/" + name)


def validate_array(root, s, value, path):
    if not s.get("minItems", 0) <= len(value) <= s.get("maxItems", len(value)):
        raise Invalid(path, "%d items" % len(value))
    for i, item in enumerate(value):
        validate(root, s.get("items", {}), item, "%s/%d" % (path, i))


KEYWORDS = {"$ref", "type", "enum", "const", "required", "properties", "additionalProperties", "items", "minItems", "maxItems", "minimum",
    "exclusiveMinimum", "maximum", "minLength", "pattern", "oneOf", "anyOf"} | NOTES


def validate(root, schema, value, path=""):
    s = resolve(root, schema)
    if not set(s) <= KEYWORDS:
        raise AssertionError("openapi.json uses keywords that this test does not check: %s" % (set(s) - KEYWORDS))
    types = s.get("type", [])
    if types and not any(TYPES[t](value) for t in ([types] if isinstance(types, str) else types)):
        raise Invalid(path, "%r is not of type %s" % (value, types))
    if "enum" in s and not any(same(value, v) for v in s["enum"]):
        raise Invalid(path, "%r is not one of %s" % (value, s["enum"]))
    if "const" in s and not same(value, s["const"]):
        raise Invalid(path, "%r is not %r" % (value, s["const"]))
    if TYPES["number"](value) and not s.get("minimum", value) <= value <= s.get("maximum", value):
        raise Invalid(path, "%r is out of range" % value)
    if TYPES["number"](value) and not value > s.get("exclusiveMinimum", float("-inf")):
        raise Invalid(path, "%r is out of range" % value)
    if isinstance(value, str) and len(value) < s.get("minLength", 0):
        raise Invalid(path, "%r is too short" % value)
    if isinstance(value, str) and not re.search(s.get("pattern", ""), value):
        raise Invalid(path, "%r does not match %s" % (value, s["pattern"]))
    if isinstance(value, dict):
        validate_object(root, s, value, path)
    if isinstance(value, list):
        validate_array(root, s, value, path)
    if "oneOf" in s and sum(passes(root, one, value, path) for one in s["oneOf"]) != 1:
        raise Invalid(path, "%.200r is not exactly one of the forms" % (value,))
    if "anyOf" in s and not any(passes(root, one, value, path) for one in s["anyOf"]):
        raise Invalid(path, "%.200r is none of the forms" % (value,))
