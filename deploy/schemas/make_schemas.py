"""Write compose-spec.json and jobset.json, the published schemas that deploy/'s YAML is tested against.

Usage: python make_schemas.py        (after pip install check-jsonschema==0.39.0 kubeflow-trainer-api==2.3.0)

compose-spec.json: the Compose Specification's JSON schema (Apache-2.0), as check-jsonschema ships it.
jobset.json: JobSet v1alpha2 with the Kubernetes pod template inside, and PersistentVolumeClaim, as kubeflow-trainer-api (Apache-2.0)
has them: models generated from the OpenAPI documents of Kubernetes and JobSet. Objects are closed, as the API server closes them
under strict field validation; the fields that only the server writes are left out.
Titles, descriptions and defaults are dropped: they decide nothing. The licence's text is LICENSE-APACHE.
"""

import importlib.metadata
import json
import os
from importlib.resources import files

from kubeflow_trainer_api import models

HERE = os.path.dirname(os.path.abspath(__file__))
NOTES = ("title", "description", "default", "deprecated", "examples")
NULL = {"type": "null"}


def stripped(node, names=False):
    """Without notes. `names`: the keys of this mapping are names of fields, which may be called as a note is."""
    if isinstance(node, list):
        return [stripped(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if names or key not in NOTES:
            kept[key] = stripped(value, names=key in ("properties", "patternProperties", "$defs") and not names)
    return kept


def closed(node):
    """Objects with named fields take no others; what is optional may be absent, but not null."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "actual_instance" in node.get("properties", {}):
        # The generator's wrapper around a value of several types, such as a quantity: a number or a text.
        return closed(node["properties"]["actual_instance"])
    node = {key: closed(value) for key, value in node.items()}
    if NULL in node.get("anyOf", []):
        others = [item for item in node.pop("anyOf") if item != NULL]
        node = others[0] if len(others) == 1 else {"anyOf": others}
    if node.get("type") == "object" and isinstance(node.get("properties"), dict):
        node["additionalProperties"] = False
    return node


def kubernetes():
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "oneOf": [], "$defs": {}}
    kinds = {
        "JobSet": ("jobset.x-k8s.io/v1alpha2", models.JobsetV1alpha2JobSet),
        "PersistentVolumeClaim": ("v1", models.IoK8sApiCoreV1PersistentVolumeClaim),
    }
    for kind, (version, model) in kinds.items():
        part = model.model_json_schema(by_alias=True)
        part["properties"].pop("status", None)
        part["properties"]["apiVersion"] = {"const": version}
        part["properties"]["kind"] = {"const": kind}
        part["required"] = ["apiVersion", "kind", "metadata", "spec"]
        schema["$defs"].update(part.pop("$defs"))
        schema["$defs"][kind] = part
        schema["oneOf"].append({"$ref": f"#/$defs/{kind}"})
    return reachable(closed(stripped(schema)))


def reachable(schema):
    """Without the definitions that nothing refers to."""
    wanted, queue = set(), [schema["oneOf"]]
    while queue:
        node = queue.pop()
        if isinstance(node, dict):
            name = node.get("$ref", "").rsplit("/", 1)[-1]
            if name and name not in wanted:
                wanted.add(name)
                queue.append(schema["$defs"][name])
            queue.extend(node.values())
        elif isinstance(node, list):
            queue.extend(node)
    schema["$defs"] = {name: schema["$defs"][name] for name in sorted(wanted)}
    return schema


def write(name, schema, comment):
    path = os.path.join(HERE, name)
    with open(path, "w") as file:
        json.dump({"$comment": comment, **schema}, file, indent=1, sort_keys=True)
        file.write("\n")
    print(f"{path}: {os.path.getsize(path)} bytes")


def version(package):
    return f"{package} {importlib.metadata.version(package)}"


if __name__ == "__main__":
    vendored = files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    write(
        "compose-spec.json",
        stripped(json.loads(vendored.read_text())),
        f"The Compose Specification's schema, Apache-2.0, from {version('check-jsonschema')}; made by make_schemas.py",
    )
    write(
        "jobset.json",
        kubernetes(),
        f"JobSet v1alpha2 and Kubernetes' pod template, Apache-2.0, from {version('kubeflow-trainer-api')}; made by make_schemas.py",
    )
