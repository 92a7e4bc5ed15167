"""DeepRx, its losses, and the task around generated slots."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

from distinf.studies.receiver import ReceiverSettings, link, losses, qam, task
from distinf.studies.receiver.capacity import binary_capacity
from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig, deeprx_inputs
from distinf.studies.receiver.scenario import ScenarioConfig
from distinf.tasks.task import GeneratingTask, Task, build_task

TINY = ReceiverSettings(
    ScenarioConfig(prbs=2, train_slots=96, evaluation_slots=72, frames_per_unit=2),
    DeepRxConfig(widths=(4, 6, 4)),
)


class Rows:
    """Rows of generated slots, by id."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[ids] for name, column in self.columns.items()}


@pytest.fixture(scope="module")
def generated():
    """A task with all its slots, and a model with batch statistics of its own."""
    pytest.importorskip("sionna.phy", reason="needs distinf[wireless]")
    made = task(TINY, seed=3)
    for split in ("train", "evaluation"):
        made.attach(split, Rows(made.generate(split, 0, made.rows(split))))
    model = made.model()
    model(made.batch("train", np.arange(48))["inputs"])
    return made, model.eval()


@pytest.mark.parametrize(
    ("widths", "bits", "expected"),
    [
        (DeepRxConfig().widths, 4, 1_232_516),
        (DeepRxConfig().widths, 8, 1_232_776),
        ((16, 24, 32, 24, 16), 4, 19_604),
    ],
)
def test_parameter_count(widths, bits, expected):
    with torch.device("meta"):
        model = DeepRx(DeepRxConfig(widths=widths), bits)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_logits_cover_the_grid_and_see_as_far_as_the_dilations_reach():
    config = DeepRxConfig(widths=(3, 3, 3))
    assert config.block_dilations() == ((1, 1), (3, 6), (1, 1))
    model = DeepRx(config, bits_per_symbol=6, rx_antennas=1).double().eval()
    inputs = torch.randn(1, 6, 14, 72, dtype=torch.float64, requires_grad=True)
    logits = model(inputs)
    assert logits.shape == (1, 6, 14, 72)
    logits[0, 0, 7, 36].backward()
    seen = inputs.grad[0].abs().sum(0) > 0
    columns = torch.nonzero(seen.any(0)).flatten()
    # One for the first convolution, then twice each dilation.
    reach = 1 + 2 * (1 + 6 + 1)
    assert (columns.min().item(), columns.max().item()) == (36 - reach, 36 + reach)
    assert seen.any(1).all()


def test_the_trust_ratio_of_vectors_is_a_setting_and_a_named_deviation():
    for name, adapted in (("matrices", False), ("all", True)):
        made = task(ReceiverSettings(trust_ratio=name), 0)
        optimizer = made.optimizer([torch.nn.Parameter(torch.ones(2))], 0.1, 0.0)
        assert optimizer.param_groups[0]["adapt_vectors"] == adapted
        assert any("trust ratio" in d for d in made.wording.deviations) != adapted


def test_inputs_hold_the_slot_the_pilots_and_their_product():
    grid = torch.randn(2, 2, 14, 12, 2).half()
    pilots = torch.randn(2, 14, 12, dtype=torch.complex64)
    inputs = deeprx_inputs(grid, pilots)
    assert inputs.shape == (2, 10, 14, 12)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    parts = torch.complex(inputs[:, :5], inputs[:, 5:])
    received = torch.view_as_complex(grid.float())
    assert torch.equal(parts[:, :2], received)
    assert torch.equal(parts[:, 2], pilots)
    torch.testing.assert_close(parts[:, 3:], received * pilots.conj()[:, None])


def by_hand(logits, batch):
    """(mean cross-entropy in nats, smooth BER, hard BER) of each sample, over data bits."""
    rows = []
    for logit, bits, mask in zip(logits.double(), batch["bits"], batch["mask"]):
        x = logit[:, mask]
        p_wrong = torch.sigmoid(torch.where(bits[:, mask] == 1, -x, x))
        wrong = (x > 0) != (bits[:, mask] == 1)
        rows.append([-(1 - p_wrong).log().mean(), p_wrong.mean(), wrong.double().mean()])
    return torch.tensor(rows).T


def test_losses_are_means_over_data_bits_with_the_capacity_weight(generated):
    made, model = generated
    batch = made.batch("train", np.array([0, 30, 70]))
    logits = model(batch["inputs"]).detach()
    entropy, smooth, hard = by_hand(logits, batch)
    weight = torch.log2(1 + 10 ** (batch["snr_db"].double() / 10))
    cases = [
        (losses.CapacityBce(), entropy * weight),
        (losses.CapacityBce("none"), entropy),
        (losses.CapacityBce("none", "bits"), entropy / np.log(2)),
        (losses.SmoothBer(), smooth),
    ]
    for loss, expected in cases:
        found = loss(model, batch).detach().double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(losses.hard_ber(logits, batch).double(), hard)
    cold = losses.SmoothBer(temperature=1e-7).from_outputs(logits, batch)
    torch.testing.assert_close(cold.double(), hard, rtol=0, atol=1e-4)


def test_a_positive_logit_means_bit_one_and_pilots_do_not_count(generated):
    made, _ = generated
    batch = made.batch("train", np.arange(3))
    right = (2.0 * batch["bits"] - 1) * 30
    right = torch.where(batch["mask"][:, None], right, -right)
    for loss in made.losses.values():
        assert loss.from_outputs(right, batch).max() < 1e-6
        assert loss.from_outputs(-right, batch).min() > 0.9
    assert losses.hard_ber(right, batch).max() == 0
    assert losses.hard_ber(-right, batch).min() == 1


@pytest.mark.parametrize("name", ["bce", "ber"])
def test_a_sample_s_loss_and_gradient_do_not_depend_on_its_batch(generated, name):
    made, model = generated
    loss = made.losses[name]
    batch = made.batch("train", np.array([5, 40, 80]))
    parameters = dict(model.named_parameters())

    def single(weights, sample):
        one = {key: value[None] for key, value in sample.items()}

        def network(inputs):
            return functional_call(model, weights, (inputs,))

        return loss(network, one)[0]

    per_sample = vmap(grad(single), in_dims=(None, 0))(parameters, batch)
    values = loss(model, batch)
    for row, id_ in enumerate((5, 40, 80)):
        alone = loss(model, made.batch("train", np.array([id_])))
        torch.testing.assert_close(alone[0], values[row])
        expected = torch.autograd.grad(alone[0], list(parameters.values()))
        for gradients, want in zip(per_sample.values(), expected):
            torch.testing.assert_close(gradients[row], want, rtol=1e-3, atol=1e-5)


def test_hessian_products_run_forward_over_reverse(generated):
    made, model = generated
    batch = made.batch("train", np.array([5, 40]))
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def mean_loss(values):
        def network(inputs):
            return functional_call(model, values, (inputs,))

        return made.losses["bce"](network, batch).mean()

    direction = {name: torch.randn_like(p) for name, p in weights.items()}
    _, forward = jvp(grad(mean_loss), (weights,), (direction,))
    leaves = {name: p.clone().requires_grad_() for name, p in weights.items()}
    first = torch.autograd.grad(mean_loss(leaves), list(leaves.values()), create_graph=True)
    dot = sum((g * direction[name]).sum() for g, name in zip(first, leaves))
    double = torch.autograd.grad(dot, list(leaves.values()), allow_unused=True)
    for name, want in zip(leaves, double):
        if want is not None:
            torch.testing.assert_close(forward[name], want, rtol=1e-3, atol=1e-3)


def test_a_row_does_not_depend_on_the_others_in_its_batch(generated):
    made, model = generated
    ids = np.array([70, 3, 41])
    batch = made.batch("evaluation", ids)
    columns = made.evaluate(model, batch)
    for row, id_ in enumerate(ids):
        one = made.batch("evaluation", np.array([id_]))
        for name, value in one.items():
            assert torch.equal(value[0], batch[name][row]), name
        for name, value in made.evaluate(model, one).items():
            torch.testing.assert_close(value[0], columns[name][row])


def test_stored_slots_carry_what_was_sent_and_received(generated):
    """The stored genie BER again, from a batch and the frame's channel drawn anew."""
    made, _ = generated
    scenario = TINY.scenario
    frame = link.draw_frame(scenario, 3, "evaluation", 1)
    channel = link.channel_response(
        link.sionna_channels(), scenario, frame, 24, link.channel_seed(3, "evaluation", 1)
    )
    batch = made.batch("evaluation", np.arange(24, 48))
    received = torch.complex(batch["inputs"][:, :2], batch["inputs"][:, 5:7])
    combined = (channel.conj() * received).sum(1) / channel.abs().square().sum(1)
    decided = qam.slice_bits(combined, 4)
    logits = torch.where(decided, 1.0, -1.0)
    assert batch["genie_ber"].max() > 0
    torch.testing.assert_close(losses.hard_ber(logits, batch), batch["genie_ber"])


def test_evaluation_has_every_column_and_keeps_the_model_s_mode(generated):
    made, model = generated
    model.train()
    before = model.norm_out.running_mean.clone()
    columns = made.evaluate(model, made.batch("evaluation", np.arange(72)))
    assert model.training
    assert torch.equal(before, model.norm_out.running_mean)
    model.eval()
    assert {made.metric, made.reference, made.axis, "baseline_ber"} <= set(columns)
    assert {"delay_spread_ns", "doppler_hz", "model"} <= set(columns)
    assert all(column.shape == (72,) for column in columns.values())
    assert (columns["genie_ber"] <= columns["ber"] + 0.05).all()
    names = {made.labels["model"][int(index)] for index in columns["model"]}
    assert names <= set(TINY.scenario.evaluation_models)


def test_the_model_depends_on_the_seed_alone():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = task(TINY, 3).model().state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    second, other = (task(TINY, seed).model().state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


def test_digests_cover_the_data_and_the_network_but_not_the_unit_size():
    base = task(TINY, 3).digests()
    wider = ReceiverSettings(TINY.scenario, DeepRxConfig(widths=(4, 8, 4)))
    assert task(wider, 3).digests()["data"] == base["data"]
    assert task(wider, 3).digests()["model"] != base["model"]
    assert task(TINY, 4).digests()["data"] != base["data"]
    fields = {"prbs": 2, "train_slots": 96, "evaluation_slots": 72}
    units = ReceiverSettings(ScenarioConfig(**fields, frames_per_unit=1), TINY.model)
    assert task(units, 3).digests() == base
    louder = ReceiverSettings(ScenarioConfig(**fields, snr_db=(0.0, 1.0)), TINY.model)
    assert task(louder, 3).digests()["data"] != base["data"]


def test_shapes_are_those_of_the_real_thing(generated):
    made, _ = generated
    shapes = made.shapes()
    assert shapes.parameters == sum(p.numel() for p in made.model().parameters())
    for split in ("train", "evaluation"):
        row = made._sources[split].take(np.array([0]))
        assert shapes.row_bytes[split] == sum(column.nbytes for column in row.values())
    full = task(ReceiverSettings(), 0).shapes()
    assert full.parameters == 1_232_516
    assert full.flops_per_sample == pytest.approx(10.6e9, rel=0.01)
    assert full.row_bytes["train"] < 38_000


def test_it_is_a_generating_task_that_a_name_and_plain_settings_build():
    settings = {"scenario": {"prbs": 2, "snr_db": [0, 20]}, "model": {"widths": [4, 4]}}
    made = build_task("receiver", settings, 3)
    assert isinstance(made, Task)
    assert isinstance(made, GeneratingTask)
    assert made.settings.scenario.snr_db == (0.0, 20.0)
    assert made.rows_per_unit("train") % made.settings.scenario.frame_slots == 0
    with pytest.raises(ValueError, match="no train slots attached"):
        made.batch("train", np.array([0]))


def test_importing_the_study_does_not_import_the_simulator():
    code = (
        "import sys, distinf.studies.receiver.link, distinf.studies.receiver.task\n"
        "assert not any(name.startswith('sionna') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sampled_bits_follow_the_network_and_the_row_alone(generated):
    made, model = generated
    batch, rows = made.batch("train", np.arange(12)), np.arange(12)

    def seen(rows, batch, scale=1.0):
        """The bits that the loss was of, from its gradient: sigmoid(logit) - bit, by its sign."""
        outputs = (scale * model(batch["inputs"]).detach()).requires_grad_()
        found = made.sampled_loss(lambda _: outputs, batch, rows, 3)
        assert found.shape == (len(rows),)
        (grads,) = torch.autograd.grad(found.sum(), outputs)
        data = batch["mask"][:, None].expand_as(grads)
        return torch.where(data, grads < 0, False), torch.sigmoid(outputs.detach()), data

    bits, chances, data = seen(rows, batch)
    assert float((bits[data].float() - chances[data]).mean().abs()) < 0.02
    some = {name: value[3:5] for name, value in batch.items()}
    assert torch.equal(seen(rows[3:5], some)[0], bits[3:5])
    assert not torch.equal(seen(rows[4:6], some)[0], bits[3:5])
    bits, chances, data = seen(rows, batch, scale=20.0)
    for least, most in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        among = data & (chances > least) & (chances < most)
        assert among.sum() > 100
        assert float((bits[among].float() - chances[among]).mean().abs()) < 0.05


def test_capacity_of_a_binary_channel():
    rates = np.array([0.0, 0.11, 0.5, 0.9, 1.0, np.nan])
    # 0.11 is where half a bit is left (a textbook value); above one half nothing is.
    np.testing.assert_allclose(binary_capacity(rates), [1, 0.5, 0, 0, 0, np.nan], atol=1e-3)
    assert binary_capacity(np.linspace(0, 1, 11))[:6].tolist() == sorted(
        binary_capacity(np.linspace(0, 1, 11))[:6], reverse=True
    )
