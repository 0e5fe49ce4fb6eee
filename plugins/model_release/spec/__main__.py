"""The JSON Schema of model files, on standard output: `make schema`."""

import json

from model_release.spec import ModelSpec

print(json.dumps(ModelSpec.model_json_schema(), indent=2))
