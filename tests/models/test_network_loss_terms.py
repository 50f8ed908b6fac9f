"""Networks with loss terms of their own: probabilistic DMT and dictionary network."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Normal, kl_divergence

from models.errors import InvalidInput, Stopped
from models.export import export, load_network
from models.losses import LOSSES
from models.losses.morse import FAINT, lasting_ridges, structure_losses
from models.losses.persistence import betti_prior, window_prior
from models.networks import build, explain, learn
from models.networks.dictionary import Dictionary
from models.networks.morse import LEAST, MOST, ThresholdHead, divergence
from tests.models.losses.every_loss import noisy_tube
from tests.models.training_runs import run

DATA = Path(os.environ.get("TOPOSERVE_DATA_SHARED", Path(__file__).parents[2] / "../shared/data")) / "isbi12"
NETWORKS = {
    "unet_pdmt": {"structure_weight": 0.5, "divergence_weight": 0.1, "structure_from_step": 0},
    "unet_tcsp": {"iterations": 1, "skeleton_weight": 0.5},
    "unet_dictionary": {"codes": 8},
    "unet_dictionary with a prior": {
        "codes": 8,
        "priors": [{"classes": [1], "betti": [1, 1]}],
        "prior_from_step": 2,
        "prior_weight": 0.1,
    },
    "unet_dictionary with a window prior": {"codes": 8, "prior_window": 8, "prior_from_step": 2},
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def network_spec(name, **changes):
    return {"name": name.split()[0], "channels": [4, 8], **NETWORKS[name], **changes}


def built(name, *, classes=1, dimensions=2, **changes):
    torch.manual_seed(0)
    changes |= (
        {"priors": [{"classes": [1], "betti": [1, 1, 0]}]} if name.endswith("a prior") and dimensions == 3 else {}
    )
    return build(network_spec(name, dimensions=dimensions, **changes), channels_in=1, channels_out=classes)


# The variational term of TCSP


@pytest.mark.parametrize("classes", [1, 3])
def test_tcsp_skeleton_term_is_the_csp_loss_of_the_variational_logits(classes):
    network = built("unet_tcsp", classes=classes, iterations=2)
    image, target = torch.randn(2, 1, 16, 16), torch.randint(0, max(classes, 2), (2, 16, 16))
    logits, terms = learn(network, image, target)
    plain, variational = network.unet(image).chunk(2, 1)
    assert torch.equal(logits, network.correction(plain, variational))
    expected = 0.5 * LOSSES["csp_skeleton_loss"](variational, target, iterations=2)
    assert terms.keys() == {"network/skeleton"} and torch.equal(terms["network/skeleton"], expected)
    terms["network/skeleton"].sum().backward()
    head = network.unet.head.weight.grad
    assert not head[:classes].any() and head[classes:].any()  # it teaches the variational half alone


def test_tcsp_adds_no_term_without_a_weight():
    network = built("unet_tcsp", skeleton_weight=0.0)
    image = torch.randn(1, 1, 16, 16)
    logits, terms = learn(network, image, torch.zeros(1, 16, 16, dtype=torch.long))
    assert terms == {} and torch.equal(logits, network(image))


# The sampled structure of the probabilistic DMT


def logit(prob):
    return torch.tensor(prob, dtype=torch.float64).logit()[None, None]


def bound_of(mean, deviation):
    return tuple(torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in (mean, deviation))


NO_DRAW = torch.zeros(2, dtype=torch.float64)


def test_structure_and_presence_equal_hand_computed_values():
    """Two peaks and their saddle: the one ridge is the walk from the saddle to both; all of it lasts 0.3."""
    logits, target = logit([[0.9, 0.5, 0.8]]), torch.tensor([[[1, 0, 1]]])
    lasting, ridge = lasting_ridges(logits.sigmoid())
    assert lasting.flatten().tolist() == pytest.approx([1, 0.3, 0.3])  # the highest pixel always stays
    assert (ridge == ridge[0, 0, 0, 1]).all() and ridge.min() >= 0
    keep = [1 / (1 + math.exp(-(pi - 0.25) / 0.1)) for pi in (0.3, 0.3, 0.3)]
    structure = -(keep[0] * math.log(0.9) + keep[1] * math.log(0.5) + keep[2] * math.log(0.8)) / sum(keep)
    there = [Normal(0, 1).cdf(torch.tensor((pi - 0.2) / 0.25)).item() for pi in (0.3, 0.3, 0.3)]
    presence = -(math.log(there[0]) + math.log(1 - there[1]) + math.log(there[2])) / 3
    draw = torch.tensor([0.2], dtype=torch.float64)
    answer = structure_losses(logits, target, bound_of([0.2], [0.25]), draw, temperature=0.1)
    assert [value.item() for value in answer] == pytest.approx([structure, presence], rel=1e-5)


def test_presence_counts_each_ridge_once_and_skips_faint_ones():
    """A long ridge that lasts 0.4, a short one of 0.3, and beads that last 0.01; not labelled between the rows."""
    prob, target = np.full((7, 30), 0.1), torch.full((1, 7, 30), 9)
    prob[1, 1:29], prob[1, 14] = 0.9, 0.5
    prob[5, 20:23], prob[5, 21] = 0.88, 0.58
    prob[3, 2:12], prob[3, 2:12:2] = 0.2, 0.21
    target[0, 1, 1:29], target[0, 5, 20:23], target[0, 3, 2:12] = 1, 0, 0
    seen = torch.where(target == 9, 0, logit(prob.tolist()).sigmoid())
    (_, every), (lasting, ridge) = lasting_ridges(seen), lasting_ridges(seen, FAINT)
    assert len(every.unique()) > len(ridge.unique()) + 3  # the gaps between the beads are ridges of their own
    costs = []
    for number in ridge[ridge >= 0].unique():
        of_it = (ridge == number) & (target != 9)
        there = Normal(0, 1).cdf((lasting[of_it].min() - 0.2) / 0.1)
        right = torch.where(target[None][of_it] == 1, there, 1 - there)
        costs.append((of_it.sum().item(), -right.log().mean().item()))
    assert max(costs)[0] > 5 * min(costs)[0]
    _, presence = structure_losses(logit(prob.tolist()), target, bound_of([0.2], [0.1]), NO_DRAW[:1], ignore=9)
    assert presence.item() == pytest.approx(np.mean([cost for _, cost in costs]), rel=1e-4)


@pytest.mark.parametrize("channels, sides", [(1, (9, 11)), (3, (9, 11)), (1, (5, 6, 7)), (3, (5, 6, 7))])
def test_gradients_of_logits_and_bound_equal_finite_differences(channels, sides, monkeypatch):
    import models.losses.morse as module

    logits, target = noisy_tube(channels, sides)
    logits = (logits / 2).requires_grad_()
    bound, draw = bound_of([0.15, 0.3], [0.2, 0.1]), torch.tensor([0.5, -0.5], dtype=torch.float64)

    def cost(logits, bound):
        return structure_losses(logits, target, bound, draw, temperature=0.1)

    to_bound = torch.autograd.grad(sum(cost(logits, bound)).sum(), bound)
    (to_logits,) = torch.autograd.grad(cost(logits, bound)[0].sum(), logits)
    step = 1e-6
    for side in range(2):
        for n in range(2):
            moved = [values.detach().clone() for values in bound]
            moved[side][n] += step
            slope = (cost(logits, moved)[1] - cost(logits, bound)[1])[n].item() / step  # structure passes none on
            assert slope == pytest.approx(to_bound[side][n].item(), rel=1e-3, abs=1e-5) and abs(slope) > 1e-4
    # Persistences carry no gradient, so the logits are compared with the same ridges held fixed.
    fixed = lasting_ridges(torch.softmax(logits, 1)[:, 1:] if channels > 1 else logits.sigmoid(), 0.02)
    monkeypatch.setattr(module, "lasting_ridges", lambda prob, noise: fixed)
    rng = np.random.default_rng(0)
    for place in rng.permutation(np.argwhere((to_logits != 0).numpy()))[:12]:
        moved = logits.detach().clone()
        moved[tuple(place)] += step
        slope = (cost(moved, bound)[0] - cost(logits, bound)[0])[place[0]].item() / step
        assert slope == pytest.approx(to_logits[tuple(place)].item(), rel=1e-3, abs=1e-6)


def test_presence_finds_mean_and_deviation_of_a_known_probit_calibrated(monkeypatch):
    """900 maps of one ridge each, of a drawn persistence, that is there by the probit Phi((pi - 0.3) / 0.15)."""
    rng = np.random.default_rng(0)
    lasting = rng.uniform(0.03, 0.8, 900)
    there = rng.random(900) < Normal(0.3, 0.15).cdf(torch.tensor(lasting)).numpy()
    prob = np.tile([0.95, 0, 0.949], (900, 1))
    prob[:, 1] = 0.949 - lasting
    maps, labels = torch.tensor(prob)[:, None, None].logit(), torch.tensor(there).long()[:, None, None].expand(-1, 1, 3)
    fixed = lasting_ridges(maps.sigmoid())
    monkeypatch.setattr("models.losses.morse.lasting_ridges", lambda prob, noise: fixed)  # the same at every step
    mean, spread = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for start in (0.1, math.log(0.05)))
    optimizer = torch.optim.Adam([mean, spread], lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        bound = mean.expand(900), spread.exp().expand(900)
        _, presence = structure_losses(maps, labels, bound, torch.randn(900, dtype=torch.float64))
        presence.mean().backward()
        optimizer.step()
    deviation = spread.exp().item()
    assert mean.item() == pytest.approx(0.3, abs=0.025) and deviation == pytest.approx(0.15, abs=0.03)
    said = Normal(mean.detach(), deviation).cdf(torch.tensor(lasting)).numpy()
    for fifth in np.array_split(np.argsort(said), 5):
        assert abs(said[fifth].mean() - there[fifth].mean()) < 0.08
    assert presence.mean() < 0.35


def test_bound_converges_between_false_and_true_ridges():
    """Lines at 0.9 with a break at 0.3, and strings of beads at 0.55, which last 0.55 where they join the lines."""
    prob, target = np.full((40, 40), 0.02), np.full((40, 40), 9)
    for row in range(4, 40, 12):
        prob[row, 3:36], target[row, 3:36] = 0.9, 1
        prob[row, 20] = 0.3
        prob[row + 6, 3:36], prob[row + 6, 3:36:4] = 0.35, 0.55
        target[row + 6, 3:36] = 0
    values, found = logit(prob.tolist()), []
    for start in (0.01, 0.9):
        mean = torch.tensor([start], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([mean], lr=0.05)
        for _ in range(80):
            optimizer.zero_grad()
            bound = mean, torch.tensor([0.05], dtype=torch.float64)
            sum(structure_losses(values, torch.tensor(target)[None], bound, NO_DRAW[:1], ignore=9)).sum().backward()
            optimizer.step()
        found.append(mean.item())
    assert all(0.5 < each < 0.65 for each in found) and abs(found[0] - found[1]) < 0.05, found


def test_two_class_softmax_loss_equals_sigmoid_loss():
    logits, target = noisy_tube(1, (9, 11))
    bound = bound_of([0.1, 0.2], [0.1, 0.1])
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(
        structure_losses(two, target, bound, NO_DRAW), structure_losses(logits, target, bound, NO_DRAW)
    )


def test_unlabelled_ridges_are_ignored():
    logits, target = noisy_tube(1, (9, 11))
    target[0, :4], target[1] = 9, 9
    bound = bound_of([0.1, 0.2], [0.1, 0.1])
    leaf = logits.clone().requires_grad_()
    cost = sum(structure_losses(leaf, target, bound, NO_DRAW, ignore=9))
    cost.sum().backward()
    assert cost[0] > 0 and cost[1] == 0 and all(values.grad[1] == 0 for values in bound)
    assert not leaf.grad[1].any() and not leaf.grad[0, :, :4].any()
    other = torch.where((target == 9)[:, None], 5 * torch.randn_like(logits), logits)
    assert torch.equal(sum(structure_losses(other, target, bound, NO_DRAW, ignore=9)), cost)


def test_structure_terms_begin_at_their_first_step():
    network = built("unet_pdmt", structure_from_step=3)
    image, target = torch.randn(1, 1, 16, 16), torch.ones(1, 16, 16, dtype=torch.long)
    assert learn(network, image, target, step=2)[1] == {}
    assert set(learn(network, image, target, step=3)[1]) == {
        "network/structure",
        "network/presence",
        "network/divergence",
    }


def test_divergence_equals_that_of_two_normal_distributions():
    torch.manual_seed(0)
    first, second = [(torch.rand(5), 0.1 + torch.rand(5)) for _ in range(2)]
    torch.testing.assert_close(divergence(first, second), kl_divergence(Normal(*first), Normal(*second)))
    assert divergence(first, first).abs().max() < 1e-6


def test_predicted_deviation_is_bounded_and_starts_near_a_tenth():
    torch.manual_seed(0)
    mean, deviation = ThresholdHead(6)(torch.randn(4, 6))
    assert (mean - 0.1).abs().max() < 0.02 and (deviation - 0.1).abs().max() < 0.02
    mean, deviation = ThresholdHead(6)(1e6 * torch.randn(40, 6))
    assert mean.min() >= 0 and mean.max() <= 1 and deviation.min() >= LEAST and deviation.max() <= MOST


# The dictionary


def test_nearest_codeword_is_found():
    torch.manual_seed(0)
    dictionary, features = Dictionary(7, 5), torch.randn(50, 5)
    apart = torch.cdist(features, dictionary.words)
    assert torch.equal(dictionary.nearest(features), apart.argmin(1))
    torch.testing.assert_close(dictionary.distances(features), apart**2, atol=1e-4, rtol=1e-4)


def test_codewords_are_sampled_by_distance_with_the_soft_gradient():
    torch.manual_seed(0)
    dictionary, feature = Dictionary(4, 3), torch.randn(1, 3)
    scale = dictionary.distances(feature).detach().min()
    expected = (-dictionary.distances(feature) / (0.5 * scale)).softmax(1)[0]
    draws = torch.cdist(dictionary.draw(feature.expand(4000, 3), 0.5), dictionary.words)
    assert (draws.amin(1) < 1e-3).all()
    often = draws.argmin(1).bincount(minlength=4) / 4000
    assert (often - expected).abs().max() < 0.04

    dictionary, features = dictionary.double(), torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weight, scale = torch.randn(6, 3, dtype=torch.float64), dictionary.distances(features).detach().amin(1).mean()
    torch.manual_seed(1)
    noise = -(-torch.rand(6, 4).clamp(1e-7, 1 - 1e-7).log()).log()

    def soft(features):
        apart = (features[:, None] - dictionary.words.detach()).square().sum(2)
        return ((-apart / (0.5 * scale) + noise).softmax(1) @ dictionary.words.detach() * weight).sum()

    torch.manual_seed(1)
    (dictionary.draw(features, 0.5) * weight).sum().backward()
    slopes = torch.zeros_like(features)
    for place in np.ndindex(*features.shape):
        step = torch.zeros_like(features)
        step[place] = 1e-6
        slopes[place] = (soft((features + step).detach()) - soft((features - step).detach())) / 2e-6
    torch.testing.assert_close(features.grad, slopes, atol=1e-6, rtol=1e-4)


def test_words_start_as_kmeans_centres_of_the_first_batch():
    torch.manual_seed(0)
    centres = 5 * torch.randn(6, 3)
    features = centres.repeat_interleave(40, 0) + 0.1 * torch.randn(240, 3)
    dictionary = Dictionary(6, 3)
    dictionary.revive(features)
    within = torch.cdist(features, dictionary.words).amin(1).mean()
    torch.manual_seed(0)
    drawn = torch.cdist(features, features[torch.randperm(240)[:6]]).amin(1).mean()
    assert within < 0.5 * drawn and torch.equal(dictionary.use, torch.full((6,), 1 / 6))
    torch.testing.assert_close(dictionary.mass / dictionary.use[:, None], dictionary.words)


def test_dead_words_move_onto_distinct_features_and_used_ones_stay():
    torch.manual_seed(0)
    dictionary, features = Dictionary(64, 3), torch.randn(64, 3)
    dictionary.revive(features)
    dictionary.use.zero_()
    dictionary.use[:3] = 0.3
    before = dictionary.words.clone()
    dictionary.revive(features)
    moved = dictionary.words[3:]
    assert torch.equal(dictionary.words[:3], before[:3])
    assert len(moved.unique(dim=0)) == 61 and torch.cdist(moved, features).amin(1).max() < 1e-3
    few = Dictionary(5, 3)
    few.revive(torch.randn(2, 3))  # fewer features than words: some share one
    assert few.words.isfinite().all() and len(few.words.unique(dim=0)) == 2


def test_word_is_the_moving_average_of_its_features():
    torch.manual_seed(0)
    dictionary, features = Dictionary(2, 3).double(), torch.randn(30, 3, dtype=torch.float64)
    dictionary.revive(features)
    mass, use = dictionary.mass.clone(), dictionary.use.clone()
    for _ in range(3):
        batch = torch.randn(30, 3, dtype=torch.float64)
        chosen = dictionary.nearest(batch)
        dictionary.follow(batch, chosen)
        for word in range(2):
            mass[word] = 0.99 * mass[word] + 0.01 * batch[chosen == word].sum(0) / 30
            use[word] = 0.99 * use[word] + 0.01 * (chosen == word).double().mean()
    torch.testing.assert_close(dictionary.words, mass / use[:, None])


def test_commitment_moves_features_and_no_gradient_moves_words():
    network = built("unet_dictionary", commitment=0.5)
    image, target = torch.randn(2, 1, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
    network.dictionary.use.fill_(1)
    rows = network.unet.encode(image)[-1].detach().movedim(1, -1).reshape(-1, 8)
    words = network.dictionary.words[network.dictionary.nearest(rows)].clone()
    by_hand = 0.5 * (rows - words).square().view(2, -1).mean(1)
    cost = learn(network, image, target)[1]["network/commitment"]
    torch.testing.assert_close(cost, by_hand, rtol=1e-4, atol=1e-6)
    cost.sum().backward()
    assert any(p.grad.any() for p in network.unet.encoder.parameters())
    assert not any(name.startswith("dictionary") for name, _ in network.named_parameters())


def test_shuffled_dictionary_takes_the_next_word_and_restores_it():
    dictionary, features = Dictionary(5, 3), torch.randn(20, 3)
    chosen = dictionary.nearest(features)
    assert torch.equal(dictionary.replace(features), dictionary.words[chosen])
    with pytest.raises(ZeroDivisionError), dictionary.shuffled():
        assert torch.equal(dictionary.replace(features), dictionary.words[chosen - 1])
        raise ZeroDivisionError
    assert torch.equal(dictionary.replace(features), dictionary.words[chosen])


def test_without_skip_connections_equal_words_give_equal_answers():
    """Without skip connections equal words give equal answers, whatever the image."""
    image = torch.randn(2, 1, 32, 32)
    for skips, equal in ((0, True), (1, False), (2, False), (None, False)):
        network = built("unet_dictionary", skips=skips, channels=[4, 6, 8]).eval()
        network.dictionary.words[:] = network.dictionary.words[0]
        answers = network(image)
        assert torch.allclose(answers[0], answers[1]) == equal, skips


def test_training_reports_dice_with_shuffled_words(world, spec, tmp_path):
    """With all skip connections a training hardly uses its words; without any it answers by them alone."""
    drops = {}
    for skips in (0, None):
        network = network_spec("unet_dictionary", skips=skips)
        options = {"steps": 60, "validate_every": 60, "optimizer": {"name": "adamw", "lr": 0.01}, "batch": 4}
        events = run({**spec, **options, "network": network}, world, tmp_path / str(skips))
        done = events[-1]
        drops[skips] = done["metrics"]["dice"] - done["checks"]["shuffled_words"]["dice"]
        lines = [event for event in events if event["event"] == "log" and "shuffled words" in event["message"]]
        assert len(lines) == 1
        assert (lines[0]["level"] == "warning") == (drops[skips] < 0.02), lines
    assert drops[0] > 0.3 > 0.02 > drops[None]


def test_window_prior_uses_the_betti_numbers_of_each_label_window():
    """Left half: one component wanted, and one there. Right half: two wanted, and one there, of height 0.8."""
    target = torch.zeros(1, 4, 8, dtype=torch.long)
    target[0, 1, 1:3], target[0, 1, 5], target[0, 1, 7] = 1, 1, 1
    prob = torch.full((4, 8), 0.001, dtype=torch.float64)
    prob[1, 1:3], prob[1, 5] = 0.9, 0.8
    value = window_prior(prob.logit()[None, None], target, window=4)
    assert value.item() == pytest.approx((0.1 + (0.2 + 1) / 2) / 2, abs=1e-2)
    whole = window_prior(prob.logit()[None, None], target, window=8)
    expected = betti_prior(prob.logit()[None, None], target, priors=[{"classes": [1], "betti": [3, 0]}], power=1.0)
    torch.testing.assert_close(whole, expected)


def test_sampling_does_not_change_batch_statistics_or_output():
    image, target = torch.randn(2, 1, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
    answers = []
    for step in (1, 2):  # the prior counts from step 2
        network = built("unet_dictionary with a prior")
        torch.manual_seed(3)
        logits, terms = learn(network, image, target, step=step)
        assert ("network/betti_prior" in terms) == (step == 2) and all(module.training for module in network.modules())
        answers.append((logits, network.state_dict()))
    assert torch.equal(answers[0][0], answers[1][0])
    assert all(torch.equal(answers[0][1][name], tensor) for name, tensor in answers[1][1].items())


def test_prior_moves_the_composed_map_to_the_right_topology():
    network, image = built("unet_dictionary with a prior", prior_weight=1.0), torch.randn(2, 1, 32, 32)
    target = torch.zeros(2, 32, 32, dtype=torch.long)
    optimizer, costs = torch.optim.Adam(network.parameters(), lr=0.03), []
    for step in range(2, 102):
        cost = learn(network, image, target, step=step)[1]["network/betti_prior"].mean()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert all(next(part.parameters()).grad.any() for part in (network.unet.encoder, network.unet.decoder))
    assert np.mean(costs[-5:]) < 0.5 * np.mean(costs[:5]), costs


@pytest.mark.parametrize(
    "network",
    [
        {"name": "unet_dictionary", "codes": 1},
        {"name": "unet_dictionary", "commitment": -1},
        {"name": "unet_dictionary", "temperature": 0},
        {"name": "unet_dictionary", "skips": -1},
        {"name": "unet_dictionary", "prior_window": 0},
        {"name": "unet_dictionary", "priors": [{"classes": [1], "betti": [1, 0, 0]}]},
        {"name": "unet_dictionary", "priors": [{"classes": [2], "betti": [1, 0]}]},
        {"name": "unet_pdmt", "temperature": 0},
        {"name": "unet_pdmt", "structure_weight": -1},
    ],
)
def test_options_that_cannot_work_are_refused(network):
    with pytest.raises(InvalidInput):
        build(network, channels_in=1, channels_out=1)


# All of them


@every_network
@pytest.mark.parametrize("classes, dimensions", [(1, 2), (3, 2), (1, 3), (3, 3)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_every_parameter_gets_a_gradient_in_every_setting_and_precision(name, classes, dimensions, precision):
    network = built(name, classes=classes, dimensions=dimensions)
    side = 24 if dimensions == 2 else 12
    image, target = (
        torch.randn(2, 1, *[side] * dimensions),
        torch.randint(0, max(classes, 2), (2, *[side] * dimensions)),
    )
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        logits, terms = learn(network, image, target, step=2)
    assert logits.shape == (2, classes, *[side] * dimensions)
    assert all(
        value.shape == (2,) and value.dtype == torch.float32 and value.isfinite().all() and (value >= -1e-6).all()
        for value in terms.values()
    )
    sum(terms.values(), LOSSES["cross_entropy"](logits.float(), target)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@every_network
def test_unlabelled_batch_trains_only_reference_free_terms(name):
    network = built(name)
    image, target = torch.randn(2, 1, 16, 16), torch.full((2, 16, 16), 9)
    terms = learn(network, image, target, ignore=9, step=2)[1]
    assert network.learns_without_labels == any(value.any() for value in terms.values())
    assert not any(value.any() for term, value in terms.items() if term == "network/window_prior")
    if not network.learns_without_labels:
        assert all(torch.equal(value, torch.zeros(2)) for value in terms.values())


@every_network
@pytest.mark.parametrize("calls", [4, 11])
def test_resumed_run_of_each_network_is_bit_identical(world, spec, tmp_path, name, calls):
    spec = {**spec, "network": network_spec(name)}
    whole = run(spec, world, tmp_path / "whole")
    steps = [event["terms"] for event in whole if event["event"] == "step"]
    own = {
        "unet_pdmt": {"network/structure", "network/presence", "network/divergence"},
        "unet_tcsp": {"network/skeleton"},
        "unet_dictionary with a prior": {"network/commitment", "network/betti_prior"},
        "unet_dictionary with a window prior": {"network/commitment", "network/window_prior"},
    }.get(name, {"network/commitment"})
    assert own == {term for term in steps[-1] if term.startswith("network/")}
    asked = itertools.count()
    with pytest.raises(Stopped):
        run(spec, world, tmp_path / "parts", stopping=lambda: next(asked) >= calls)
    latest = [event for event in run.events if event["event"] == "checkpoint"][-1]
    assert 0 < latest["step"] < 8
    run(spec, world, tmp_path / "elsewhere", resume=tmp_path / "parts" / latest["path"])
    for kept in ("best.safetensors", "checkpoints/000008.safetensors"):
        assert (tmp_path / "whole" / kept).read_bytes() == (tmp_path / "elsewhere" / kept).read_bytes()


KNOBS = {
    "unet_tcsp": {"iterations": 3, "rule": "published", "skeleton_weight": 5.0},
    "unet_pdmt": {"structure_weight": 0.1, "divergence_weight": 0.9, "temperature": 0.5, "structure_from_step": 2},
    "unet_dictionary": {"codes": 5, "commitment": 0.9, "skips": 0},
    "unet_dictionary with a window prior": {"prior_window": 16},
    "unet_dictionary with a prior": {
        "prior_weight": 1.0,
        "prior_from_step": 1,
        "temperature": 2.0,
        "priors": [{"classes": [1], "betti": [3, 0]}],
    },
}


@pytest.mark.parametrize(
    ("name", "change"), [(name, {option: value}) for name, knobs in KNOBS.items() for option, value in knobs.items()]
)
def test_every_option_of_these_networks_changes_the_weights(name, change):
    weights = []
    for options in ({}, change):
        network = built(name, **options)
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        for step in (1, 2, 3):
            image, target = (
                torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(step)),
                torch.ones(2, 16, 16, dtype=torch.long),
            )
            optimizer.zero_grad()
            logits, terms = learn(network, image, target, step=step)
            sum(value.mean() for value in (*terms.values(), LOSSES["cross_entropy"](logits, target))).backward()
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert weights[0].shape != weights[1].shape or not torch.equal(*weights)


def test_dictionary_network_is_exported_with_nearest_codewords(make_dataset, spec, tmp_path):
    data = make_dataset(sides=(9, 18, 29), count=2, classes=("background", "left", "right"))
    network = network_spec("unet_dictionary", dimensions=3, channels=[3, 4])
    run({**spec, "network": network, "patch": [8, 16, 16], "steps": 3}, data, tmp_path / "run")
    check = export(tmp_path / "run/best.safetensors", data, tmp_path / "out")["verification"]
    assert check["max_difference"] < 1e-4 and check["mask_disagreements"] == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["extra_outputs"] == []


def test_exported_threshold_equals_torch_and_is_read_by_serving(world, spec, tmp_path):
    from app.imaging.picture import Picture
    from app.serving.contract import Manifest
    from app.serving.load import Load
    from app.serving.pipeline import Predictor
    from app.serving.runtime import Network
    from models.data import read_dataset
    from models.scaling import scale

    run({**spec, "network": network_spec("unet_pdmt")}, world, tmp_path / "run")
    export(tmp_path / "run/best.safetensors", world, tmp_path / "out")
    network, facts = load_network(tmp_path / "run/best.safetensors")
    manifest = Manifest.model_validate_json((tmp_path / "out/manifest.json").read_text())
    served = Network((tmp_path / "out/model.onnx").read_bytes(), manifest, Load(), threads=1)
    image = np.array(read_dataset(world).items[0].image())
    with torch.no_grad():
        mean, deviation = explain(network, torch.from_numpy(scale(image, facts["scaling"]))[None])[1][0].tolist()
    found = Predictor(manifest, served, extra=served.extra).persistence_threshold(Picture(image, "png"))
    assert found == pytest.approx((mean, deviation), abs=1e-5) and 0 < mean < 1


@every_network
def test_fifty_steps_on_a_real_crop_reduce_the_loss(name):
    if not DATA.is_dir():
        pytest.skip(f"{DATA} holds the real images; set TOPOSERVE_DATA_SHARED to the folder that has isbi12/")
    crop = np.asarray(Image.open(DATA / "images/isbi12_00.png"), np.float32)[:64, :64]
    target = torch.from_numpy((np.asarray(Image.open(DATA / "masks/isbi12_00.png"))[:64, :64] == 0).astype(np.int64))[
        None
    ]
    image, network = torch.from_numpy((crop - crop.mean()) / crop.std())[None, None], built(name)
    optimizer, costs = torch.optim.Adam(network.parameters(), lr=0.01), []
    for step in range(1, 51):
        logits, terms = learn(network, image, target, step=step)
        terms["cross_entropy"] = LOSSES["cross_entropy"](logits, target)
        optimizer.zero_grad()
        sum(terms.values()).sum().backward()
        optimizer.step()
        costs.append({key: value.item() for key, value in terms.items()})
    late = {key: np.mean([cost[key] for cost in costs[-5:]]) for key in costs[-1]}
    assert late["cross_entropy"] < 0.8 * costs[0]["cross_entropy"], (costs[0], late)
    if "network/structure" in late:
        assert late["network/structure"] < costs[0]["network/structure"]
