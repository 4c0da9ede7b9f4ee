"""The host's time of steps and layers beside torch's: what is compared is what trains."""

import torch

from bench import host_time


def test_every_variant_is_measured_in_turn(capsys):
    host_time.main(["--device", "cpu", "--weights", "2", "--size", "16", "--rounds", "2"])
    told = capsys.readouterr().out
    for name in (*host_time.KINDS, host_time.FUSED, host_time.LINEAR):
        assert f"\n{name} " in told, name
    assert told.count("least, us") == 2


def test_ratios_are_to_torchs_own():
    rows = host_time.table({"torch": [1e-6, 2e-6, 9e-6], "ours": [3e-6, 3e-6, 4e-6]}, "torch")
    assert rows[1:] == [
        ("torch", "1.0", "1.00", "2.0", "1.00"),
        ("ours", "3.0", "3.00", "3.0", "1.50"),
    ]


def test_a_call_leaves_nothing_for_the_next():
    """Each forward and backward makes its gradients anew, of the entries that train."""
    layer = host_time.layers("columns, 1.6 %", 1, 16, "cpu")[0]
    call = host_time._forward_and_backward(layer, 16, "cpu")
    seen = []
    layer.values.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.shape))
    call()
    call()
    assert seen == 2 * [layer.values.shape] and layer.values.grad is None


def test_a_step_steps_on_all_weights():
    calls = host_time.steps(2, 16, "cpu")
    for variant in host_time.KINDS:
        _, model = calls[variant]()
        trained = [p for p in model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        calls[variant]()
        assert len(trained) == 2
        assert not any(torch.equal(p, value) for p, value in zip(trained, before)), "no decay"
