from __future__ import annotations

from starlette.testclient import TestClient

from tests.serving.toys import GREEN, RED, Works, png


def test_a_green_part_passes_and_a_red_one_is_rejected_as_dented(http: TestClient, live: Works):
    headers = live.token()
    good = http.post(
        "/plants/mill/predict", headers=headers, files={"image": ("a.png", png(GREEN))}, data={"environment": "cam-1"}
    )
    bad = http.post("/plants/mill/predict?environment=cam-1", headers=headers, content=png(RED))
    assert good.status_code == 200, good.text
    assert good.json()["verdict"] == "ok"
    assert (bad.json()["verdict"], bad.json()["defect"]) == ("reject", "dent")
