"""LitServe around `plain_model`, run by its own virtual environment: two workers, one image a request.

python plain_litserve.py PORT        the task in the environment variable BENCH_SERVING_TASK
"""

import json
import os
import sys
from typing import Any

import litserve  # type: ignore[import-not-found]
from plain_model import TASK, Plain, as_nice_as_ray


class Api(litserve.LitAPI):  # type: ignore[misc]
    """An image in the form's field `content`, as LitServe's documentation sends one."""

    def setup(self, device: str) -> None:
        """The model is loaded in this worker."""
        as_nice_as_ray()
        self.plain = Plain.of(json.loads(os.environ[TASK]))

    def decode_request(self, request) -> bytes:  # type: ignore[no-untyped-def]
        """The image's bytes; without an annotation LitServe hands over the form."""
        found: bytes = request["content"].file.read()
        return found

    def predict(self, data: bytes) -> dict[str, Any]:
        """The probabilities by class."""
        return self.plain.answer(data)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return output


if __name__ == "__main__":
    as_nice_as_ray()
    workers = json.loads(os.environ[TASK])["replicas"]
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=workers, timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False)
