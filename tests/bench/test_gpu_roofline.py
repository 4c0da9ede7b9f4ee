"""The floors of a GPU's ops, and the page that is written of them."""

import pytest

from bench import gpu_floors, gpu_roofline
from bench.gpu_results import Results


def test_floors_of_the_notes():
    """Bytes an entry of a step at random densities, and the dense product, worked out by hand."""
    for density, bytes_each in {0.01: 61.7, 0.05: 54.4, 0.1: 48.3, 0.25: 39.9}.items():
        assert gpu_floors.adamw("entries", 1, density)[0].dram == pytest.approx(
            bytes_each, abs=0.05
        )
    dense = gpu_floors.dense_wgrad(8192, (4096, 4096))
    assert gpu_floors.floor(dense, gpu_floors.H200) == pytest.approx(348e-6, rel=0.01)
    (alone,) = gpu_floors.single_blocks_wgrad(8192, (4096, 4096), 0.25)
    (grouped,) = gpu_floors.blocks_wgrad(8192, (4096, 4096), 0.25)
    assert alone.flop / alone.l2 == pytest.approx(
        32
    ) and grouped.flop / grouped.l2 == pytest.approx(51.2)


def test_floors_of_few_blocks_have_the_sums_of_their_parts():
    """fp32 sums of each part are written and read again in the cache, the values written once."""
    values = 0.01 * 4096 * 4096
    products, sums = gpu_floors.blocks_wgrad(8192, (4096, 4096), 0.01)
    parts, left = divmod(sums.l2, 8 * values)
    assert parts > 1 and left == 0 and sums.dram == 4 * values
    (alone,) = gpu_floors.blocks_wgrad(8192, (4096, 4096), 0.25)  # fills the device as it is
    assert gpu_floors.launches([alone]) == 1 and gpu_floors.launches([products, sums]) == 2
    both = gpu_floors.grouped_wgrad([(8192, (4096, 4096))] * 2, 0.01)
    assert [phase.l2 for phase in both] == [2 * products.l2, 2 * sums.l2]


def test_the_page_is_what_the_floors_say():
    assert gpu_roofline.PAGE.read_text() == gpu_roofline.document(), (
        "python -m bench.gpu_roofline writes it anew"
    )


def test_measurements_come_into_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS", str(tmp_path))
    Results().add("ops", gpu_floors.name("selected_wgrad", "rows", 0.05), "ours", fraction=0.83)
    monkeypatch.setattr(gpu_roofline, "MEASURED", tmp_path / "results.csv")
    assert "|             83 % |" in gpu_roofline.document()


def test_a_crossover_is_where_floors_meet():
    def of(bytes_each):
        return lambda density: [gpu_floors.Phase(dram=1 + bytes_each * density)]

    def flat(density):
        return [gpu_floors.Phase(dram=11)]

    assert gpu_floors.crossover(of(100), flat, gpu_floors.H200) == pytest.approx(0.1, rel=1e-6)
    assert gpu_floors.crossover(of(1), flat, gpu_floors.H200) is None
