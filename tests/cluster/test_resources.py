from __future__ import annotations

import pytest

from cluster.resources import check, fits, shortage, usable_cpus
from plants.errors import InputError

TWO_NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}]


@pytest.mark.parametrize(
    ("demand", "copies"),
    [
        ({"CPU": 1}, 12),
        ({"CPU": 3}, 3),
        ({"CPU": 5}, 1),
        ({"GPU": 0.25}, 4),
        ({"CPU": 4, "GPU": 1}, 1),
        ({"TPU": 1}, 0),
    ],
)
def test_copies_are_counted_a_node_at_a_time(demand, copies):
    assert fits(demand, TWO_NODES) == copies


def test_tenths_of_a_gpu_are_not_lost_to_rounding():
    assert fits({"GPU": 0.1}, [{"GPU": 1.0}]) == 10


def test_a_demand_that_no_single_node_meets_is_told_with_what_there_is():
    assert shortage({"CPU": 10}, TWO_NODES) == "no node has 10 CPU: the largest has 8 CPU"
    assert shortage({"CPU": 2, "GPU": 1}, [{"CPU": 2.0}]) == "no node has 2 CPU and 1 GPU: the largest has 0 GPU"


def test_too_many_copies_are_told_with_how_many_fit():
    assert shortage({"CPU": 3}, TWO_NODES, copies=4) == "4 times 3 CPU are needed at once, the 2 node(s) hold 3"
    with pytest.raises(InputError, match="Ask for less"):
        check({"CPU": 3}, TWO_NODES, copies=4)


def test_what_fits_is_let_through():
    for demand, copies in (({"CPU": 3}, 3), ({"GPU": 0.0}, 1)):
        check(demand, TWO_NODES, copies=copies)
        assert not shortage(demand, TWO_NODES, copies=copies)


def test_a_cluster_without_nodes_holds_nothing():
    assert shortage({"CPU": 1}, []) == "no node has 1 CPU: the largest has 0 CPU"


@pytest.mark.parametrize(("quota", "most"), [("150000 100000", 1), ("max 100000", 10**6), ("10000 100000", 1)])
def test_a_containers_quota_limits_the_cores(tmp_path, quota, most):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert 1 <= usable_cpus(file) <= most


def test_without_a_quota_file_there_is_at_least_one_core(tmp_path):
    assert usable_cpus(tmp_path / "none") >= 1
